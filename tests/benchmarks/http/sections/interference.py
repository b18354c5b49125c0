"""Latency of one-token appends while another connection uploads 64 MiB bodies without a pause."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

from benchmarks.http.clients import HttpCaller
from benchmarks.http.contenders import servers
from benchmarks.http.figures import Aim, at_most, median, percentile, table
from benchmarks.http.payloads import BULK, STEP
from benchmarks.http.sections.small import timed_calls

SERVERS = {"bare ASGI": "bare", "naive FastAPI": "naive", "service without codec": "null", "service": "service"}


@dataclass(frozen=True, slots=True)
class Interference:
    """Latencies in seconds by server, alone and during uploads."""

    alone: dict[str, list[float]]
    during: dict[str, list[float]]


def measure(rounds: int, calls: int) -> Interference:
    """Measure the servers in turn. The uploader is a process of its own."""
    alone: dict[str, list[float]] = {label: [] for label in SERVERS}
    during: dict[str, list[float]] = {label: [] for label in SERVERS}
    with servers(*SERVERS.values()) as running:
        for _ in range(rounds):
            for label, name in SERVERS.items():
                caller = HttpCaller(running[name].url, STEP)
                alone[label] += timed_calls(caller, calls)
                with _uploading(running[name].url):
                    during[label] += timed_calls(caller, calls)
                caller.close()
    return Interference(alone, during)


@contextmanager
def _uploading(url: str) -> Iterator[None]:
    spawn = multiprocessing.get_context("spawn")
    begun, stop = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_upload, args=(url, begun, stop))
    process.start()
    try:
        assert begun.wait(60), "the uploader did not start"
        yield
    finally:
        stop.set()
        process.join(60)
    assert process.exitcode == 0, "the uploader failed"


def _upload(url: str, begun: Event, stop: Event) -> None:
    caller = HttpCaller(url, BULK, fresh=True)
    while not stop.is_set():
        caller.call()
        begun.set()
    caller.close()


def report(found: Interference) -> str:
    """Return the table."""
    rows = [
        [label, *(f"{f(samples[label]) * 1e3:.2f}" for samples in (found.alone, found.during) for f in (median, _p99))]
        for label in SERVERS
    ]
    head = ["", "alone p50 ms", "p99", "during p50 ms", "p99"]
    return table("One token while 64 MiB bodies are uploaded on another connection", head, rows)


def _p99(samples: list[float]) -> float:
    return percentile(samples, 99)


def aims(found: Interference) -> list[Aim]:
    """Return the aims."""
    p99 = _p99(found.during["service without codec"]) * 1e3
    return [at_most("one token during uploads, p99", 10, p99, "ms")]


def to_json(found: Interference) -> dict[str, Any]:
    """Return percentiles in seconds."""
    parts = {"alone": found.alone, "during": found.during}
    return {
        part: {label: {"p50_s": median(s), "p99_s": _p99(s), "calls": len(s)} for label, s in by_label.items()}
        for part, by_label in parts.items()
    }
