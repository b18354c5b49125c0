"""Cost of acknowledged appends: synced to disk before the response."""

import tempfile
import threading
import time
from typing import Any

import numpy as np

from benchmarks.http.figures import median, percentile, table
from hadakv_service.testing import running_service
from support.contract import Caller

DURABILITIES = ("memory", "spill", "ack")
CONNECTIONS = (1, 16)
RNG = np.random.default_rng(8)
STEP = tuple(RNG.standard_normal((8, 2, 1, 64)).astype(np.float16) for _ in "kv")
BULK = tuple(RNG.standard_normal((32, 8, 512, 128)).astype(np.float16) for _ in "kv")


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure milliseconds of single requests, and requests per second of several clients, in turn."""
    rounds, calls, seconds = (1, 20, 0.3) if quick else (5, 200, 1.5)
    found: dict[str, dict[str, list[float]]] = {
        d: {"step": [], "bulk": [], **{f"rate {n}": [] for n in CONNECTIONS}} for d in DURABILITIES
    }
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--data-dir", folder, "--disk-budget", "8GiB", "--memory-budget", "4GiB")
        with running_service(*flags) as service, Caller(service.url) as caller:
            for round_ in range(rounds):
                for durability, timed in found.items():
                    name = f"{durability}-{round_}"
                    caller.put(f"/sessions/{name}", {"durability": durability})
                    timed["step"] += [_milliseconds(caller, name, STEP) for _ in range(calls)]
                    caller.put(f"/sessions/{name}-bulk", {"durability": durability})
                    timed["bulk"] += [_milliseconds(caller, f"{name}-bulk", BULK) for _ in range(3)]
                    for n in CONNECTIONS:
                        timed[f"rate {n}"].append(_rate(service.url, durability, n, seconds, f"{name}-{n}"))
                    caller.delete(f"/sessions/{name}-bulk")
    return found


def _milliseconds(caller: Caller, name: str, kv: Any) -> float:
    start = time.perf_counter()
    answer = caller.append(name, *kv)
    took = time.perf_counter() - start
    assert answer.status in (200, 201), answer
    return took * 1e3


def _rate(url: str, durability: str, connections: int, seconds: float, name: str) -> float:
    """Return appends of one token per second. Each connection has a session of its own."""
    counts = [0] * connections
    ready = threading.Barrier(connections)

    def append(i: int) -> None:
        with Caller(url) as caller:
            caller.put(f"/sessions/{name}-{i}", {"durability": durability})
            ready.wait()
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                assert caller.append(f"{name}-{i}", *STEP).status in (200, 201)
                counts[i] += 1

    threads = [threading.Thread(target=append, args=(i,)) for i in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def report(found: dict[str, Any]) -> str:
    """Return the table."""
    rows = [
        [
            durability,
            f"{median(timed['step']):.2f}",
            f"{percentile(timed['step'], 95):.2f}",
            f"{median(timed['bulk']):.0f}",
            *(f"{median(timed[f'rate {n}']):.0f}" for n in CONNECTIONS),
        ]
        for durability, timed in found.items()
    ]
    head = [
        "durability",
        "one token p50 ms",
        "p95 ms",
        "64 MiB p50 ms",
        *(f"tokens/s, {n} clients" for n in CONNECTIONS),
    ]
    return table("Appends by durability; the clients are threads of one Python process", head, rows)
