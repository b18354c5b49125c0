"""Time of appends with checkpoints and without: two services at once, which get the same appends in turn."""

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import httpx
import numpy as np

from hadakv_client import Client
from hadakv_service.testing import RunningService, running_service

SESSIONS = 32
# 8 layers of 4 heads, 4 tokens at a time.
SHAPE = (8, 4, 4, 128)
MIB = 2**20


@contextmanager
def _service(checkpoint_seconds: str) -> Iterator[RunningService]:
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--data-dir", folder, "--disk-budget", "8GiB", "--memory-budget", "2GiB", "--threads", "1")
        with running_service(*flags, "--checkpoint-seconds", checkpoint_seconds) as service:
            yield service


def compare(seconds: float, checkpoint_seconds: str) -> str:
    """Send the same appends to both services, one after the other, and return a table.

    Whatever else the machine does slows both, so the ratios are more meaningful than the times.
    """
    kinds = ("0", checkpoint_seconds)
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    k, v = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float16)
    with ExitStack() as stack:
        services = {kind: stack.enter_context(_service(kind)) for kind in kinds}
        clients = {kind: stack.enter_context(Client(service.url)) for kind, service in services.items()}
        sessions = {kind: [client.session(f"s-{i}") for i in range(SESSIONS)] for kind, client in clients.items()}
        until = time.monotonic() + seconds
        for i in count():
            if time.monotonic() > until:
                break
            # The first of the two takes longer, because it wakes the processor.
            for kind in kinds if i % 2 else reversed(kinds):
                began = time.perf_counter()
                sessions[kind][i % SESSIONS].append(k, v, minimal=True)
                spent[kind].append(time.perf_counter() - began)
        metrics = httpx.get(f"{services[checkpoint_seconds].url}/metrics").text
        stored = sum(info.nbytes for info in clients[checkpoint_seconds].sessions())
    return _table(spent, metrics, stored)


def _table(spent: dict[str, list[float]], metrics: str, stored: int) -> str:
    lines = ["checkpoint seconds  appends  median ms   90 %   99 %  99.9 %"]
    points = []
    for kind, times in spent.items():
        points.append(np.percentile(times, (50, 90, 99, 99.9)) * 1000)
        figures = "".join(f"{point:>{width}.2f}" for point, width in zip(points[-1], (11, 7, 7, 8), strict=True))
        lines.append(f"{kind:>18}{len(times):>9,}{figures}")
    off, on = points
    ratios = "".join(f"{ratio:>{width}.2f}" for ratio, width in zip(on / off, (11, 7, 7, 8), strict=True))
    lines.append(f"{'ratio':>18}{'':9}{ratios}")
    names = ("sessions", "bytes", "seconds", "failures")
    sessions, nbytes, seconds, failures = (
        float(re.findall(rf"^hadakv_checkpoint_{name}_total (\S+)", metrics, re.MULTILINE)[0]) for name in names
    )
    return "\n".join(
        [
            *lines,
            "",
            f"{stored / MIB:>10.1f}  MiB stored in {SESSIONS} sessions",
            f"{nbytes / MIB:>10.1f}  MiB written in {sessions:.0f} checkpoints of a session, in {seconds:.1f} s",
            f"{failures:>10.0f}  failures",
        ]
    )
