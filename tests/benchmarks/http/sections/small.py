"""Appends of one token of a small model: latency, and requests per second at several connections."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.http.clients import Caller, ClientCaller, HttpCaller, RedisCaller, redis_set
from benchmarks.http.contenders import Contender, servers
from benchmarks.http.figures import Aim, at_least, at_most, median, percentile, speed, table
from benchmarks.http.load import http_length, redis_length, requests_per_second
from benchmarks.http.payloads import STEP

CONNECTIONS = (1, 16, 64)

CONTENDERS = (
    Contender("bare ASGI", "bare", lambda url: HttpCaller(url, STEP)),
    Contender("service without codec", "null", lambda url: HttpCaller(url, STEP)),
    Contender("service", "service", lambda url: HttpCaller(url, STEP)),
    Contender("service without codec, our client", "null", lambda url: ClientCaller(url, STEP)),
    Contender("Redis SET of the float16 bytes", "redis", lambda url: RedisCaller(url, STEP)),
)
# A protocol class that responds at once. It shows the limit of the load generator.
CEILING = "the generator's own limit"
LOADED = {CEILING: "ceiling", "bare ASGI": "bare", "service without codec": "null", "service": "service"}
LOADED |= {"Redis SET of the float16 bytes": "redis"}


@dataclass(frozen=True, slots=True)
class Small:
    """Figures of small appends.

    Attributes:
        latency: seconds of each request on one connection, by label.
        rate: requests per second of each round, by label and number of connections.
    """

    latency: dict[str, list[float]]
    rate: dict[str, dict[int, list[float]]]


def measure(rounds: int, calls: int, seconds: float) -> Small:
    """Measure the contenders in turn: `calls` requests, then `seconds` of load."""
    with servers("ceiling", "bare", "null", "service", "redis", budget="1GiB") as running, ExitStack() as stack:
        callers: dict[str, Caller] = {}
        for contender in CONTENDERS:
            if contender.server in running:
                callers[contender.label] = contender.open(running[contender.server].url)
                stack.callback(callers[contender.label].close)
        latency: dict[str, list[float]] = {label: [] for label in callers}
        urls = {label: running[name].url for label, name in LOADED.items() if name in running}
        rate: dict[str, dict[int, list[float]]] = {label: {n: [] for n in CONNECTIONS} for label in urls}
        for round_ in range(rounds):
            for label, caller in callers.items():
                latency[label] += timed_calls(caller, calls)
            for connections in CONNECTIONS:
                for label, url in urls.items():
                    rate[label][connections].append(_rate(label, url, connections, seconds, round_))
        return Small(latency, rate)


def timed_calls(caller: Caller, calls: int) -> list[float]:
    """Return the seconds of each request, after a warm-up."""
    for _ in range(calls // 10):
        caller.call()
    samples = []
    for _ in range(calls):
        start = time.perf_counter()
        caller.call()
        samples.append(time.perf_counter() - start)
    return samples


def _rate(label: str, url: str, connections: int, seconds: float, round_: int) -> float:
    make: Callable[[str], bytes] = lambda session: STEP.request(session) + STEP.body  # noqa: E731
    length = http_length
    if LOADED[label] == "redis":
        make, length = lambda session: redis_set(session, STEP.raw), redis_length
    requests = [make(f"load-{connections}-{round_}-{i}") for i in range(connections)]
    return requests_per_second(url, requests, length, seconds)


def report(small: Small) -> str:
    """Return the tables."""
    bare = median(small.latency["bare ASGI"])
    rows = []
    for label, samples in small.latency.items():
        p50, p99 = median(samples), percentile(samples, 99)
        rows.append([label, f"{p50 * 1e6:.0f}", f"{p99 * 1e6:.0f}", f"{p50 / bare:.2f}"])
    up, down = len(STEP.body) / 1024, STEP.packed_nbytes / 1024
    title = f"One token, {STEP.layers} layers: {up:.0f} KiB up, {down:.0f} KiB down, one connection"
    latency = table(title, ["", "p50 µs", "p99 µs", "p50 / bare"], rows)
    rates = {label: [median(by_count[n]) for n in CONNECTIONS] for label, by_count in small.rate.items()}
    rows = [[label, *(f"{rate:,.0f}" for rate in by_count)] for label, by_count in rates.items()]
    return latency + "\n" + table("The same, requests a second", ["connections", *map(str, CONNECTIONS)], rows)


def aims(small: Small) -> list[Aim]:
    """Return the aims."""
    p50 = {label: median(samples) for label, samples in small.latency.items()}
    ours, bare = small.rate["service without codec"][16], small.rate["bare ASGI"][16]
    return [
        at_most("one token, p50: of bare ASGI", 2.5, p50["service without codec"] / p50["bare ASGI"]),
        at_least("one token, 16 connections: of bare ASGI", 0.5, speed(bare, ours)),
    ]


def to_json(small: Small) -> dict[str, Any]:
    """Return percentiles in seconds, and median requests per second."""
    latency = {
        label: {"p50_s": median(samples), "p99_s": percentile(samples, 99), "calls": len(samples)}
        for label, samples in small.latency.items()
    }
    rate = {label: {str(n): median(by_count[n]) for n in CONNECTIONS} for label, by_count in small.rate.items()}
    return {"latency": latency, "requests_per_second": rate}
