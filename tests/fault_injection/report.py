"""Counters of a run, and the table printed at the end."""

import platform
import sqlite3
import statistics
import threading
from collections import Counter

LABELS = {
    "requests": "requests",
    "pending": "  without a response",
    "carried out": "    of those, found carried out",
    "rejected": "  rejected as expected: disk full or failing",
    "appends": "appends acknowledged",
    "tokens": "tokens acknowledged",
    "repeated": "appends repeated, same response",
    "looked at": "sessions described between other requests",
    "spilled": "  of those, at least partly on disk",
    "checked": "sessions read after a restart",
    "saved": "spill sessions of which a checkpoint or a shutdown had saved tokens",
    "lost": "sessions missing or shorter, as their durability allows",
    "bytes": "bytes compared with the reference",
    "integrity": "integrity checks passed",
    "faults": "system calls that failed or were cut off",
    "lost bytes": "written bytes lost in power losses",
}


class Violation(AssertionError):
    """A broken promise of the service."""


class Tally:
    """Counters of a run. Several threads add to them.

    Attributes:
        violations: descriptions of broken promises.
        restarts: seconds from each start to the first response.
        stops: seconds that each clean shutdown took.
        kinds: number of rounds by kind.
        codes: number of exits by exit code.
        append_seconds: time of each acknowledged append.
    """

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.restarts: list[float] = []
        self.stops: list[float] = []
        self.kinds: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()
        self.append_seconds: list[float] = []
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name] += count

    def violation(self, text: str) -> None:
        """Record a broken promise."""
        with self._lock:
            self.violations.append(text)

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def table(self, seed: int, seconds: float, kinds: dict[str, str]) -> str:
        """Return the table printed at the end."""
        rounds = sum(self.kinds.values())
        system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        lines = [f"{rounds} rounds in {seconds:.0f} s, seed {seed}, {system}, SQLite {sqlite3.sqlite_version}", ""]
        lines += [f"{self.kinds[kind]:>14,}  {text}" for kind, text in kinds.items() if self.kinds[kind]]
        lines += ["", *(f"{self._counts[name]:>14,}  {text}" for name, text in LABELS.items())]
        lines += [f"{_span(self.restarts):>14}  seconds from restart to first response, median and maximum"]
        lines += [f"{_span(self.stops):>14}  seconds of a clean shutdown, median and maximum"]
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(self.codes.items()))
        lines += [f"{codes:>14}  exit codes", f"{len(self.violations):>14,}  violations"]
        return "\n".join(lines)


def _span(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f}, {max(seconds):.2f}" if seconds else "-"
