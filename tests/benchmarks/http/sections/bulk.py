"""Bulk appends: a body of 64 MiB and the packed response, one request at a time."""

import time
from contextlib import ExitStack
from typing import Any

from benchmarks.http.clients import Caller, ClientCaller, HttpCaller, RawCaller, RedisCaller
from benchmarks.http.contenders import Contender, servers
from benchmarks.http.figures import Aim, at_least, median, speed, table
from benchmarks.http.payloads import BULK

# Maximum seconds for each contender.
SECONDS_EACH = 25.0

CONTENDERS = (
    Contender("raw sockets", "raw", lambda url: RawCaller(url, BULK)),
    Contender("bare ASGI, body discarded", "bare", lambda url: HttpCaller(url, BULK)),
    Contender("naive FastAPI: body(), unpackb", "naive", lambda url: HttpCaller(url, BULK)),
    Contender("service without codec, raw client", "null", lambda url: HttpCaller(url, BULK, fresh=True)),
    Contender("service without codec, our client", "null", lambda url: ClientCaller(url, BULK, fresh=True)),
    Contender("service, raw client", "service", lambda url: HttpCaller(url, BULK, fresh=True)),
    Contender("service, our client", "service", lambda url: ClientCaller(url, BULK, fresh=True)),
    Contender("Redis SET of the float16 bytes", "redis", lambda url: RedisCaller(url, BULK)),
)


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each request by label. Contenders take turns, so that drift affects all of them."""
    with servers("raw", "bare", "naive", "null", "service", "redis") as running, ExitStack() as stack:
        callers: dict[str, Caller] = {}
        for contender in CONTENDERS:
            if contender.server in running:
                callers[contender.label] = contender.open(running[contender.server].url)
                stack.callback(callers[contender.label].close)
        for caller in callers.values():
            caller.call()
        samples: dict[str, list[float]] = {label: [] for label in callers}
        for _ in range(rounds):
            for label, caller in callers.items():
                if sum(samples[label]) < SECONDS_EACH:
                    samples[label].append(_timed(caller))
        return samples


def _timed(caller: Caller) -> float:
    start = time.perf_counter()
    caller.call()
    return time.perf_counter() - start


def report(samples: dict[str, list[float]]) -> str:
    """Return the table."""
    rows = []
    for contender in CONTENDERS:
        if contender.label not in samples:
            rows.append([contender.label, "not installed", "", ""])
            continue
        mine = samples[contender.label]
        rate, of_raw = len(BULK.body) / median(mine) / 2**30, speed(mine, samples["raw sockets"])
        rows.append([contender.label, f"{median(mine) * 1e3:.1f}", f"{rate:.2f}", f"{of_raw:.2f}"])
    mib = 2**20
    title = f"Bulk: {len(BULK.body) / mib:.0f} MiB up, {BULK.packed_nbytes / mib:.0f} MiB down, medians"
    return table(title, ["", "ms", "GiB/s up", "of raw"], rows)


def aims(samples: dict[str, list[float]]) -> list[Aim]:
    """Return the aims."""
    raw, naive = samples["raw sockets"], samples["naive FastAPI: body(), unpackb"]
    ours, client = samples["service without codec, raw client"], samples["service without codec, our client"]
    found = [
        at_least("bulk, raw client: of raw sockets", 0.70, speed(ours, raw)),
        at_least("bulk, our client: of raw sockets", 0.60, speed(client, raw)),
        at_least("bulk, raw client: of the naive server", 4, speed(ours, naive)),
    ]
    redis = samples.get("Redis SET of the float16 bytes")
    return found if redis is None else [*found, at_least("bulk, our client: of Redis SET", 3, speed(client, redis))]


def to_json(samples: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians and samples in seconds."""
    return {label: {"median_s": median(values), "samples_s": values} for label, values in samples.items()}
