"""One append call and one read call of 100,000 tokens of an 8B model's shape, with memory-mapped arrays.

    PYTHONPATH=tests python tests/benchmarks/client/long_session.py DIRECTORY [TOKENS]

K and V have 32 layers, 8 KV heads and head_dim 128 in float16: 128 KiB a token, 12.2 GiB in all. To spare disk and
memory, each head of the arrays that are sent is a window of one long array, at a place of its own. The arrays that are
read into are files. DIRECTORY needs 12.2 GiB for these, and a quarter for the session. It is removed at the end.
"""

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hadakv_client import Client, Codec
from hadakv_kernels import reference
from hadakv_service.testing import running_service

LAYERS, HEADS, HEAD_DIM = 32, 8, 128
# Distance of the windows of two heads, in tokens. It is odd against pages and parts, so that misplaced tokens differ.
STEP = 17
SERVICE = ("--memory-budget", "2GiB", "--disk-budget", "16GiB", "--threads", "2")


def main() -> None:
    """Append, read and compare, and print times and memory."""
    directory, tokens = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    directory.mkdir()
    try:
        rows = np.random.default_rng(5).standard_normal((2, tokens + STEP * LAYERS * HEADS, HEAD_DIM), np.float32)
        rows = rows.astype(np.float16)
        source = [_windows(each, tokens) for each in rows]
        out = [_file(directory / f"read-{name}", tokens) for name in "kv"]
        with running_service("--data-dir", str(directory / "data"), *SERVICE) as service, Client(service.url) as client:
            session = client.session("long", {"bits": 4})
            with _measured("append", service.process.pid, sum(x.nbytes for x in source)) as progress:
                session.append(*source, position=0, minimal=True, progress=progress)
            info = session.info()
            print(f"stored: {info.length} tokens, {info.nbytes / 2**30:.1f} GiB packed, tier {info.tier}")
            with _measured("read", service.process.pid, sum(x.nbytes for x in out)) as progress:
                session.read(form="float16", out=(out[0], out[1]), progress=progress)
        _compare(out, rows)
    finally:
        shutil.rmtree(directory)


def _windows(rows: Any, tokens: int) -> Any:
    """Return keys or values whose heads are overlapping windows of the rows."""
    row, element = rows.strides
    strides = (HEADS * STEP * row, STEP * row, row, element)
    return np.lib.stride_tricks.as_strided(rows, (LAYERS, HEADS, tokens, HEAD_DIM), strides, writeable=False)


def _file(path: Path, tokens: int) -> Any:
    return np.lib.format.open_memmap(path, "w+", np.float16, (LAYERS, HEADS, tokens, HEAD_DIM))


@contextmanager
def _measured(name: str, service: int, nbytes: int) -> Iterator[Any]:
    """Print the seconds of the block, and the peak memory of both processes without memory-mapped files."""
    peaks, parts, ended = {"client": 0, "service": 0}, list[int](), threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for process, pid in (("client", "self"), ("service", service)):
                peaks[process] = max(peaks[process], _anonymous_nbytes(pid))

    before = _anonymous_nbytes("self"), _anonymous_nbytes(service)
    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    yield lambda done, _: parts.append(done)
    seconds = time.perf_counter() - start
    ended.set()
    thread.join()
    print(
        f"{name}: {parts[-1]} tokens, {nbytes / 2**30:.1f} GiB in {len(parts)} parts, {seconds:.0f} s; client "
        f"{before[0] >> 20} MiB before, {peaks['client'] >> 20} at most; service {before[1] >> 20} MiB before, "
        f"{peaks['service'] >> 20} at most"
    )


def _anonymous_nbytes(pid: int | str) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) << 10


def _compare(out: list[Any], rows: Any) -> None:
    """Compare every token with what the reference decodes."""
    spec, differing = Codec(bits=4).at(HEAD_DIM), 0
    for whole, each in zip(out, rows, strict=True):
        decoded = _windows(reference.decode(reference.encode(each, spec), spec, "float16"), whole.shape[2])
        for layer in range(LAYERS):
            differing += int((whole[layer].view(np.uint16) != decoded[layer].view(np.uint16)).sum())
    print(f"{differing} elements differ from the reference")


if __name__ == "__main__":
    main()
