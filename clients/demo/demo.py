"""Demo: send the K/V of a model through a service, and print compression, error and time. Run with `make demo`."""

import statistics
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
raw: size as float16. packed: size with norms. error: RMS error divided by the
RMS of the values. encode: codec alone. append, read: HTTP round trips, read as
float32. Times are medians. exact: packed bytes, norms and decoded values equal
the reference
"""


class Sample(NamedTuple):
    """Keys and values: float16 `[layers, kv_heads, tokens, head_dim]`."""

    k: NDArray[Any]
    v: NDArray[Any]

    def tokens(self, start: int, stop: int) -> "Sample":
        """Return tokens start to stop as C-order arrays."""
        return Sample(*(np.ascontiguousarray(x[:, :, start:stop]) for x in self))


class Expected(NamedTuple):
    """One stream, and its encoding by the reference codec."""

    x: NDArray[Any]
    spec: CodecSpec
    encoded: Encoded

    def differences(self, stream: Any) -> Iterator[str]:
        """Yield "packed" or "norms" if these bits of a stream differ from the reference."""
        for part in ("packed", "norms"):
            found, expected = getattr(stream, part), getattr(self.encoded, part)
            if found.shape != expected.shape or found.tobytes() != expected.tobytes():
                yield part

    def nrmse(self, values: NDArray[Any]) -> float:
        """Return the RMS error of decoded values divided by the RMS of the exact values."""
        exact = self.x.astype(np.float64)
        return float(np.sqrt(np.square(values - exact).sum() / np.square(exact).sum()))


@dataclass(frozen=True)
class Row:
    """Results of one codec: a row of the table. Times are medians in milliseconds."""

    label: str
    packed_nbytes: int
    k_error: float
    v_error: float
    encode_ms: float
    append_ms: float
    read_ms: float
    differences: list[str]


def load_sample() -> tuple[Sample, str]:
    """Return the K/V in the file next to this module, and the name of their model."""
    with safe_open(SAMPLE, "np") as tensors:
        return Sample(tensors.get_tensor("k"), tensors.get_tensor("v")), tensors.metadata()["model"]


def expect(sample: Sample, options: dict[str, Any]) -> dict[str, Expected]:
    """Return the reference encoding of both streams.

    Args:
        sample: keys and values.
        options: codec options for both streams, or a map of `k` and `v`.
    """
    streams = {}
    for name, x in sample._asdict().items():
        spec = Codec.from_mapping(options.get(name, options)).at(x.shape[-1])
        streams[name] = Expected(x, spec, reference.encode(x, spec))
    return streams


def median_ms(call: Callable[[], object]) -> float:
    """Return the median time of several calls, in milliseconds."""

    def once() -> float:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)

    return statistics.median(once() for _ in range(REPEATS))


def compare(expected: dict[str, Expected], appended: Any, packed: Any, decoded: Any) -> list[str]:
    """Return a line for each difference between the reference and the three responses of the service."""
    differences = []
    for name, stream in expected.items():
        for source, result in (("append", appended), ("read", packed)):
            differences += [f"{part} of {name}, {source}" for part in stream.differences(getattr(result, name))]
        if getattr(decoded, name).tobytes() != reference.decode(stream.encoded, stream.spec).tobytes():
            differences.append(f"decoded {name}")
    return differences


def try_codec(client: Client, backend: Backend, sample: Sample, label: str) -> Row:
    """Send the sample to a new session, read it, compare it with the reference, and measure times."""
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
    """Return the median round trip of an append that creates a session, in milliseconds."""
    sessions = [client.session(f"demo-{i}", codec=options) for i in range(REPEATS)]
    unused = iter(sessions)
    median = median_ms(lambda: next(unused).append(*sample, position=0))
    for session in sessions:
        session.delete()
    return median


def generate(client: Client, sample: Sample) -> tuple[float, list[str]]:
    """Append a prompt and then single tokens, like a model.

    Returns:
        the median time of a token in milliseconds, and the differences from the reference.
    """
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
    differences = [
        f"{part} of {name}" for name in expected for part in expected[name].differences(getattr(packed, name))
    ]
    return statistics.median(steps), differences


def table_of(rows: list[Row], raw_nbytes: int) -> Table:
    """Return a table of at most 80 columns."""
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


def report(console: Console, rows: list[Row], raw_nbytes: int, step_ms: float, differences: list[str]) -> None:
    """Print the table and a summary."""
    console.print(table_of(rows, raw_nbytes))
    console.print(LEGEND, style="dim")
    console.print(f"Single tokens after a prompt of {PREFILL_TOKENS}: {step_ms:.2f} ms per token, all layers.")
    if differences:
        console.print("[red]Different from the reference:[/]", *differences, sep="\n  ")
    else:
        console.print("[green]All packed bytes, norms and decoded values equal the reference.[/]")


def main() -> int:
    """Run the demo. Return the exit status: 1 if any result differs from the reference codec in a single bit."""
    console = Console(highlight=False)
    sample, model = load_sample()
    with running_service("--memory-budget", "1GiB") as service, Client(service.url) as client:
        console.print(service.startup_line, soft_wrap=True)
        console.print(f"K and V of {sample.k.shape[2]} tokens, {model}\n", soft_wrap=True)
        backend = open_backend()
        quiet = not console.is_terminal
        labels = track(CODECS, "Encoding, sending, reading", console=console, transient=True, disable=quiet)
        rows = [try_codec(client, backend, sample, label) for label in labels]
        step_ms, step_differences = generate(client, sample)
    differences = [f"single tokens: {difference}" for difference in step_differences]
    differences += [f"{row.label}: {difference}" for row in rows for difference in row.differences]
    report(console, rows, sample.k.nbytes + sample.v.nbytes, step_ms, differences)
    return 1 if differences else 0
