"""Cost of requests by session length: an append of one token, a fork, a read of one token."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.http.figures import median, percentile, table
from hadakv_service.testing import running_service
from support.contract import Caller

LENGTHS = (1_000, 10_000, 100_000)
# A small model, so that the longest session takes little more than 1 GiB.
LAYERS, HEADS, HEAD_DIM = 8, 2, 64
CHUNK = 1_000


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure the seconds of each request at each length. The lengths take turns."""
    lengths = LENGTHS[:2] if quick else LENGTHS
    rng = np.random.default_rng(7)
    k, v = (rng.standard_normal((LAYERS, HEADS, CHUNK, HEAD_DIM)).astype(np.float16) for _ in "kv")
    step = k[:, :, :1].copy(), v[:, :, :1].copy()
    found: dict[str, dict[str, list[float]]] = {str(n): {"append": [], "fork": [], "read": []} for n in lengths}
    with running_service("--memory-budget", "4GiB") as service, Caller(service.url) as caller:
        for length in lengths:
            for _ in range(length // CHUNK):
                caller.append(str(length), k, v)
        for i in range(10 if quick else 300):
            for length in lengths:
                name, timed = str(length), found[str(length)]
                timed["append"].append(_seconds(lambda name=name: caller.append(name, *step)))
                timed["read"].append(_seconds(lambda name=name, n=length: caller.read(name, start=n - 1, stop=n)))
                timed["fork"].append(
                    _seconds(lambda name=name, i=i: caller.post(f"/sessions/{name}/fork", {"id": f"f{i}"}))
                )
                caller.delete(f"/sessions/f{i}")
    return found


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def report(found: dict[str, Any]) -> str:
    """Return the table."""
    least = found[next(iter(found))]
    rows = [
        [
            f"{int(length):,} tokens",
            *(
                cell
                for call in ("append", "fork", "read")
                for cell in (
                    f"{median(timed[call]) * 1e3:.2f}",
                    f"{percentile(timed[call], 95) * 1e3:.2f}",
                    f"{median(timed[call]) / median(least[call]):.2f}",
                )
            ),
        ]
        for length, timed in found.items()
    ]
    head = ["", *(f"{call} {what}" for call in ("append", "fork", "read") for what in ("p50 ms", "p95 ms", "to first"))]
    title = f"One token of {LAYERS} layers, {HEADS} heads, head_dim {HEAD_DIM}, in sessions of different lengths"
    return table(title, head, rows)
