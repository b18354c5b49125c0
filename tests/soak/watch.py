"""What a process takes as time goes on. Linux only: it reads /proc."""

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
    """One moment.

    Attributes:
        seconds: since the beginning.
        resident: bytes of memory the process has.
        used: bytes its ledger counts in memory.
        disk: bytes it counts on disk.
        sessions: how many it keeps.
    """

    seconds: float
    resident: int
    used: int
    disk: int
    sessions: int


class Watch(threading.Thread):
    """Samples a service once a second until it is told to end.

    Args:
        url: the service.
        pid: its process.
    """

    def __init__(self, url: str, pid: int) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._url = url
        self._pid = pid
        self._over = threading.Event()
        self._began = time.monotonic()

    def run(self) -> None:
        """Sample."""
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while True:
                ready = client.get("/readyz")
                if ready.status_code == 200:
                    told = ready.json()
                    counted = (told["used_nbytes"], told["disk_used_nbytes"], told["sessions"])
                    self.samples.append(Sample(time.monotonic() - self._began, self._resident(), *counted))
                if self._over.wait(1.0):
                    return

    def end(self) -> None:
        """Stop."""
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
    """Memory over time: at some moments, the slope once settled, and the peak."""
    lines = ["seconds  resident MiB  ledger MiB  disk MiB  sessions"]
    for each in samples[:: max(1, len(samples) // 10)]:
        mib = [
            f"{nbytes / MIB:>{width}.1f}" for nbytes, width in ((each.resident, 14), (each.used, 12), (each.disk, 10))
        ]
        lines.append(f"{each.seconds:7.0f}{''.join(mib)}{each.sessions:>10}")
    late = [each for each in samples if each.seconds >= settled]
    peak = max(each.resident for each in samples)
    lines += [
        "",
        f"{peak / MIB:>14.1f}  MiB resident at most; {samples[0].resident / MIB:.1f} before the first call",
        f"{max(each.used for each in samples) / MIB:>14.1f}  MiB in the ledger at most, budget {budget / MIB:.1f}",
        f"{max((each.used + each.disk) / budget for each in samples):>14.1f}  times the budget is all data, at most",
    ]
    if len(late) > 2:
        minutes = np.array([each.seconds for each in late]) / 60
        slope = np.polyfit(minutes, np.array([each.resident for each in late]) / MIB, 1)[0]
        highest = max(each.resident for each in late) / MIB
        lines.append(f"{slope:>14.3f}  MiB a minute more, from {settled:.0f} s on; {highest:.1f} MiB at most then")
    return "\n".join(lines)
