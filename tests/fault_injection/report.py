"""What a run has done and found, and the table it ends with."""

import platform
import sqlite3
import statistics
import threading
from collections import Counter

LABELS = {
    "requests": "requests",
    "unanswered": "  without an answer",
    "carried out": "    of those, found carried out",
    "refused": "  refused for want of room or of a disk, as was to be expected",
    "appends": "appends acknowledged",
    "tokens": "tokens acknowledged",
    "repeated": "appends sent again, answered alike",
    "looked at": "sessions looked at between calls",
    "spilled": "  that were on disk, in part at least",
    "checked": "sessions read back after a restart",
    "lost": "  not there, or not all, as their durability allows",
    "bytes": "bytes compared with the reference",
    "integrity": "integrity checks, all of them ok",
    "faults": "calls of the kernel that failed or were cut off",
    "lost bytes": "written bytes that a loss of power took",
}


class Violation(AssertionError):
    """Something that must never be."""


class Tally:
    """Counts. Several threads add to them.

    Attributes:
        violations: what must never be, and was.
        restarts: seconds from start to the first answer.
        stops: seconds that an orderly end took.
        kinds: rounds by how they went.
        codes: how often the service ended with which exit code.
    """

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.restarts: list[float] = []
        self.stops: list[float] = []
        self.kinds: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Count."""
        with self._lock:
            self._counts[name] += count

    def violation(self, text: str) -> None:
        """Note what must never be."""
        with self._lock:
            self.violations.append(text)

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def table(self, seed: int, seconds: float, kinds: dict[str, str]) -> str:
        """The closing table."""
        rounds = sum(self.kinds.values())
        system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        lines = [f"{rounds} rounds in {seconds:.0f} s, seed {seed}, {system}, SQLite {sqlite3.sqlite_version}", ""]
        lines += [f"{self.kinds[kind]:>14,}  {text}" for kind, text in kinds.items() if self.kinds[kind]]
        lines += ["", *(f"{self._counts[name]:>14,}  {text}" for name, text in LABELS.items())]
        lines += [f"{_span(self.restarts):>14}  seconds to a restart's first answer, median and longest"]
        lines += [f"{_span(self.stops):>14}  seconds of an orderly end, median and longest"]
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(self.codes.items()))
        lines += [f"{codes:>14}  exit codes", f"{len(self.violations):>14,}  violations"]
        return "\n".join(lines)


def _span(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f}, {max(seconds):.2f}" if seconds else "-"
