"""Send real K/V through the running service and print what that saves and what it costs: `make demo`.

Exits with 1 if anything that comes back is not, bit for bit, what the reference codec says.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors import safe_open

from hadakv_client import Client
from hadakv_kernels import Backend, Codec, CodecSpec, Encoded, Stream, open_backend, reference
from hadakv_service.testing import running_service

SAMPLE = Path(__file__).with_name("kv-sample.safetensors")
REPEATS = 7
PREFILL_TOKENS = 64
CODECS: dict[str, dict[str, Any]] = {
    "8": {"bits": 8},
    "6": {"bits": 6},
    "5": {"bits": 5},
    "4": {"bits": 4},
    "4 unbiased": {"bits": 4, "norm": "unbiased"},
    "3": {"bits": 3},
    "2": {"bits": 2},
    "K 8, V 4": {"k": {"bits": 8}, "v": {"bits": 4}},
}


HEADINGS = [
    ("raw", "KiB"),
    ("packed", "KiB"),
    ("", "ratio"),
    ("K", "error"),
    ("V", "error"),
    ("encode", "ms"),
    ("append", "ms"),
    ("read", "ms"),
    ("", "exact"),
]


LEGEND = """
raw is float16, packed includes the norms; error is root mean square, relative
to the values; encode is the codec alone, append and read are round trips over
HTTP, read as float32, medians; exact: packed bytes, norms and decoded values
are those of the reference
"""


class Sample(NamedTuple):
    """Keys and values: float16 `[layers, kv_heads, tokens, head_dim]`."""

    k: NDArray[Any]
    v: NDArray[Any]

    def tokens(self, start: int, stop: int) -> "Sample":
        """Some of the tokens."""
        return Sample(*(np.ascontiguousarray(x[:, :, start:stop]) for x in self))


class Expected(NamedTuple):
    """One stream as the reference packs it."""

    x: NDArray[Any]
    spec: CodecSpec
    encoded: Encoded

    def differences(self, stream: Any) -> Iterator[str]:
        """Which of a stream's packed bytes and norm bits are others."""
        for part in ("packed", "norms"):
            got, wanted = getattr(stream, part), getattr(self.encoded, part)
            if got.shape != wanted.shape or got.tobytes() != wanted.tobytes():
                yield part

    def nrmse(self, values: NDArray[Any]) -> float:
        """Root mean square of the error of decoded values, relative to that of the exact ones."""
        exact = self.x.astype(np.float64)
        return float(np.sqrt(np.square(values - exact).sum() / np.square(exact).sum()))


@dataclass(frozen=True)
class Row:
    """What one codec did to the sample: a row of the table; times are medians."""

    label: str
    packed_nbytes: int
    k_error: float
    v_error: float
    encode_ms: float
    append_ms: float
    read_ms: float
    differences: list[str]


def load_sample() -> tuple[Sample, str]:
    """The K/V that lie beside this file, and what model they are from."""
    with safe_open(SAMPLE, "np") as tensors:
        return Sample(tensors.get_tensor("k"), tensors.get_tensor("v")), tensors.metadata()["model"]


def expect(sample: Sample, options: dict[str, Any]) -> dict[str, Expected]:
    """What the reference makes of the sample with a codec as it stands on the wire."""
    streams = {}
    for name, x in sample._asdict().items():
        spec = Codec.from_mapping(options.get(name, options)).at(x.shape[-1])
        streams[name] = Expected(x, spec, reference.encode(x, spec))
    return streams


def median_ms(call: Callable[[], object]) -> float:
    """The median time of a few calls, in milliseconds."""

    def once() -> float:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)

    return statistics.median(once() for _ in range(REPEATS))


def compare(expected: dict[str, Expected], appended: Any, packed: Any, decoded: Any) -> list[str]:
    """Everything in the service's three answers that is not what the reference says."""
    found = []
    for name, stream in expected.items():
        for source, answer in (("append's answer", appended), ("read back", packed)):
            found += [f"{part} of {name}, {source}" for part in stream.differences(getattr(answer, name))]
        if getattr(decoded, name).tobytes() != reference.decode(stream.encoded, stream.spec).tobytes():
            found.append(f"decoded {name}")
    return found


def try_codec(client: Client, backend: Backend, sample: Sample, label: str) -> Row:
    """Send the sample to a session of its own, read it back, compare, and take the times."""
    options = CODECS[label]
    expected = expect(sample, options)
    session = client.session("demo", codec=options)
    appended = session.append(*sample)
    packed, decoded = session.read(), session.read(form="float32")
    packed_nbytes = session.info().nbytes
    read_ms = median_ms(lambda: session.read(form="float32"))
    session.delete()
    return Row(
        label,
        packed_nbytes,
        expected["k"].nrmse(decoded.k),
        expected["v"].nrmse(decoded.v),
        encode_ms=median_ms(lambda: backend.encode([Stream(stream.x, stream.spec) for stream in expected.values()])),
        append_ms=median_append_ms(client, sample, options),
        read_ms=read_ms,
        differences=compare(expected, appended, packed, decoded),
    )


def median_append_ms(client: Client, sample: Sample, options: dict[str, Any]) -> float:
    """The median round trip of an append that makes a session, in milliseconds."""
    sessions = [client.session(f"demo-{i}", codec=options) for i in range(REPEATS)]
    waiting = iter(sessions)
    median = median_ms(lambda: next(waiting).append(*sample, position=0))
    for session in sessions:
        session.delete()
    return median


def generate(client: Client, sample: Sample) -> tuple[float, list[str]]:
    """Append as a model does, a prompt and then token after token; the median step, and what differs."""
    length = sample.k.shape[2]
    session = client.session("demo-steps")
    session.append(*sample.tokens(0, PREFILL_TOKENS))
    steps = []
    for token in range(PREFILL_TOKENS, length):
        step = sample.tokens(token, token + 1)
        start = time.perf_counter()
        session.append(*step, position=token)
        steps.append(1000 * (time.perf_counter() - start))
    packed = session.read()
    session.delete()
    expected = expect(sample, {})
    found = [f"{part} of {name}" for name in expected for part in expected[name].differences(getattr(packed, name))]
    return statistics.median(steps), found


def table_of(rows: list[Row], raw_nbytes: int) -> Table:
    """The rows as people like to read them, within 80 columns."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("\nbits")
    for above, below in HEADINGS:
        table.add_column(f"{above}\n{below}", justify="right")
    for row in rows:
        table.add_row(
            row.label,
            f"{raw_nbytes / 1024:.0f}",
            f"{row.packed_nbytes / 1024:.0f}",
            f"{raw_nbytes / row.packed_nbytes:.2f}",
            f"{row.k_error:.4f}",
            f"{row.v_error:.4f}",
            f"{row.encode_ms:.1f}",
            f"{row.append_ms:.1f}",
            f"{row.read_ms:.1f}",
            "[red]no[/]" if row.differences else "[green]yes[/]",
        )
    return table


def report(console: Console, rows: list[Row], raw_nbytes: int, step_ms: float, found: list[str]) -> None:
    """Print the table and what to make of it."""
    console.print(table_of(rows, raw_nbytes))
    console.print(LEGEND, style="dim")
    console.print(f"A prompt of {PREFILL_TOKENS} tokens, then one by one: {step_ms:.2f} ms a token, all layers.")
    if found:
        console.print("[red]Not what the reference says:[/]", *found, sep="\n  ")
    else:
        console.print("[green]Every packed byte, norm and decoded value is the reference's.[/]")


def main() -> int:
    """Run the demo; the exit status."""
    console = Console(highlight=False)
    sample, model = load_sample()
    with running_service("--memory-budget", "1GiB") as service, Client(service.url) as client:
        console.print(service.startup_line, soft_wrap=True)
        console.print(f"K and V of {sample.k.shape[2]} tokens, {model}\n", soft_wrap=True)
        backend = open_backend()
        quiet = not console.is_terminal
        labels = track(CODECS, "Encoding, sending, reading back", console=console, transient=True, disable=quiet)
        rows = [try_codec(client, backend, sample, label) for label in labels]
        step_ms, found = generate(client, sample)
    found = [f"token by token: {what}" for what in found]
    found += [f"{row.label}: {what}" for row in rows for what in row.differences]
    report(console, rows, sample.k.nbytes + sample.v.nbytes, step_ms, found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
