"""Peak memory of a server during an append of 64 MiB. Linux only: it reads /proc."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.http.clients import HttpCaller
from benchmarks.http.contenders import servers
from benchmarks.http.figures import Aim, at_most, table
from benchmarks.http.payloads import BULK, STEP

MIB = 2**20
SERVERS = {"naive FastAPI": "naive", "service": "service"}


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a server before an append, and its peak, bytes."""

    before: int
    peak: int

    @property
    def beyond(self) -> int:
        """Return the bytes beyond the body and its packed form."""
        return self.peak - self.before - len(BULK.body) - BULK.packed_nbytes


def measure() -> dict[str, Memory]:
    """Measure each server in a new process, without buffers of earlier requests."""
    return {label: _measure(name) for label, name in SERVERS.items()} if sys.platform == "linux" else {}


def _measure(name: str) -> Memory:
    with servers(name) as running:
        url, pid = running[name].url, running[name].pid
        small, bulk = (HttpCaller(url, workload) for workload in (STEP, BULK))
        small.call()
        before = _status(pid, "VmRSS")
        # 5 resets the peak; see proc(5).
        Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")
        bulk.call()
        peak = _status(pid, "VmHWM")
        small.close()
        bulk.close()
        return Memory(before, peak)


def _status(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"))
    assert found
    return int(found[1]) * 1024


def report(found: dict[str, Memory]) -> str:
    """Return the table."""
    rows = [
        [label, *(f"{nbytes / MIB:.0f}" for nbytes in (m.before, m.peak, m.peak - m.before, m.beyond))]
        for label, m in found.items()
    ]
    body, packed = len(BULK.body) / MIB, BULK.packed_nbytes / MIB
    title = f"Server memory in MiB, one append: {body:.0f} MiB body, {packed:.0f} MiB packed"
    return table(title, ["", "before", "peak", "more", "beyond body and packed"], rows)


def aims(found: dict[str, Memory]) -> list[Aim]:
    """Return the aims."""
    return [at_most("memory beyond body and packed", 32, found["service"].beyond / MIB, "MiB")] if found else []


def to_json(found: dict[str, Memory]) -> dict[str, Any]:
    """Return the figures in bytes."""
    return {label: {"before": m.before, "peak": m.peak, "beyond": m.beyond} for label, m in found.items()}
