"""Memory overhead of very many tiny sessions. Linux only: it reads /proc."""

import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http.figures import table
from hadakv_service.testing import running_service
from support.contract import Caller

GIB = 2**30


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure resident bytes of a service before and after sessions of one token, without and with a disk."""
    if sys.platform != "linux":
        return {}
    count = 2_000 if quick else 100_000
    k, v = (np.ones((1, 1, 1, 64), np.float16) for _ in "kv")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "memory": ("--memory-budget", "4GiB"),
            "memory of 64 MiB, disk below": ("--memory-budget", "64MiB", "--data-dir", folder, "--disk-budget", "8GiB"),
        }
        for way, flags in ways.items():
            with running_service(*flags) as service, Caller(service.url) as caller:
                caller.append("first", k, v)
                before = _resident(service.process.pid)
                start = time.perf_counter()
                for i in range(count):
                    caller.append(f"session-{i:06}", k, v)
                seconds = time.perf_counter() - start
                ready = caller.get("/readyz").body
                found[way] = {
                    "sessions": count,
                    "kept": ready["sessions"],
                    "seconds": seconds,
                    "resident": _resident(service.process.pid) - before,
                    "ledger": ready["used_nbytes"],
                    "disk": ready["disk_used_nbytes"],
                    "packed": caller.info("first")["nbytes"] * count,
                }
    return found


def _resident(pid: int) -> int:
    found = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"))
    assert found
    return int(found[1]) * 1024


def report(found: dict[str, Any]) -> str:
    """Return the table."""
    rows = [
        [
            way,
            f"{m['kept']:,}",
            f"{m['packed'] / m['sessions']:.0f}",
            f"{m['resident'] / m['sessions']:.0f}",
            f"{m['ledger'] / m['sessions']:.0f}",
            f"{m['disk'] / m['sessions']:.0f}",
            f"{GIB / max(m['resident'] / m['sessions'], 1):,.0f}",
            f"{m['sessions'] / m['seconds']:.0f}",
        ]
        for way, m in found.items()
    ]
    head = ["", "sessions kept", "packed", "resident", "ledger", "disk", "sessions/GiB of memory", "made/s"]
    return table("Sessions of one token (1 layer, 1 head, head_dim 64); bytes a session", head, rows)
