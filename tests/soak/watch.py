"""Memory of a process over time. Linux only: it reads /proc."""

import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """Sample of one moment.

    Attributes:
        seconds: time since the start.
        resident: resident memory of the process, bytes.
        used: memory that the service counts, bytes.
        disk: disk space that the service counts, bytes.
        sessions: number of sessions.
    """

    seconds: float
    resident: int
    used: int
    disk: int
    sessions: int


class Watch(threading.Thread):
    """Thread that samples a service once a second.

    Args:
        url: URL of the service.
        pid: process id of the service.
    """

    def __init__(self, url: str, pid: int) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._url = url
        self._pid = pid
        self._over = threading.Event()
        self._began = time.monotonic()

    def run(self) -> None:
        """Take samples until `end` is called."""
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while True:
                ready = client.get("/readyz")
                if ready.status_code == 200:
                    body = ready.json()
                    counted = (body["used_nbytes"], body["disk_used_nbytes"], body["sessions"])
                    self.samples.append(Sample(time.monotonic() - self._began, self._resident(), *counted))
                if self._over.wait(1.0):
                    return

    def end(self) -> None:
        """Stop the thread."""
        self._over.set()
        self.join(90)

    def _resident(self) -> int:
        if sys.platform != "linux":
            return 0
        status = Path(f"/proc/{self._pid}/status").read_text("ascii")
        found = re.search(r"VmRSS:\s*(\d+) kB", status)
        assert found
        return int(found[1]) * 1024


def table(samples: list[Sample], budget: int, settled: float) -> str:
    """Return a table of memory over time, with the peak and the slope after warm-up."""
    lines = ["seconds  resident MiB  counted MiB  disk MiB  sessions"]
    for each in samples[:: max(1, len(samples) // 10)]:
        mib = [
            f"{nbytes / MIB:>{width}.1f}" for nbytes, width in ((each.resident, 14), (each.used, 13), (each.disk, 10))
        ]
        lines.append(f"{each.seconds:7.0f}{''.join(mib)}{each.sessions:>10}")
    late = [each for each in samples if each.seconds >= settled]
    peak = max(each.resident for each in samples)
    lines += [
        "",
        f"{peak / MIB:>14.1f}  MiB resident, maximum; {samples[0].resident / MIB:.1f} before the first request",
        f"{max(each.used for each in samples) / MIB:>14.1f}  MiB counted in memory, maximum; budget {budget / MIB:.1f}",
        f"{max((each.used + each.disk) / budget for each in samples):>14.1f}  times the budget: all data, maximum",
    ]
    if len(late) > 2:
        minutes = np.array([each.seconds for each in late]) / 60
        slope = np.polyfit(minutes, np.array([each.resident for each in late]) / MIB, 1)[0]
        highest = max(each.resident for each in late) / MIB
        lines.append(f"{slope:>14.3f}  MiB per minute growth after {settled:.0f} s; maximum then {highest:.1f} MiB")
    return "\n".join(lines)
