"""Counters of a fuzzing target: cases, statuses and failures."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# A service may be busy or full. Every other 5xx status is a failure.
ALLOWED = {501, 503, 507}
# Maximum memory growth after warm-up, beyond the memory budget.
EXTRA_NBYTES = 192 << 20


def is_fault(status: int) -> bool:
    """Return whether a status is a failure of the service."""
    return status >= 500 and status not in ALLOWED


@dataclass(frozen=True, slots=True)
class Limit:
    """Limit of a target: the first of both limits ends it.

    Attributes:
        seed: random seed. The same seed gives the same cases.
        cases: maximum number of cases.
        seconds: maximum duration.
    """

    seed: int = 1
    cases: int | None = None
    seconds: float | None = None

    def numbers(self) -> Iterator[int]:
        """Yield numbers of cases until the limit."""
        number, start = 0, time.monotonic()
        while (self.cases is None or number < self.cases) and (
            self.seconds is None or time.monotonic() - start < self.seconds
        ):
            yield number
            number += 1


@dataclass(slots=True)
class Tally:
    """Counters of a target.

    Attributes:
        target: name of the target.
        cases: number of requests, or of inputs if there is no service.
        outcomes: number of cases by status, or by result if there is no service.
        failures: description of each failure.
        timeouts: requests without a response in time.
        grown_nbytes: memory growth of the service, bytes; None if there is no service.
        seconds: duration.
    """

    target: str
    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    timeouts: int = 0
    grown_nbytes: int | None = None
    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, status: int, what: str) -> None:
        """Count a response."""
        self.record_all([status], what)

    def record_all(self, statuses: Iterable[int], what: str) -> None:
        """Count a case that may have any number of responses."""
        with self._lock:
            self.cases += 1
            self.outcomes.update(map(str, statuses))
        self._blame(statuses, what)

    def _blame(self, statuses: Iterable[int], what: str) -> None:
        self.failures += [f"{status}: {what}" for status in statuses if is_fault(status)]

    def record_timeout(self, what: str) -> None:
        """Count a request without a response in time."""
        with self._lock:
            self.cases += 1
            self.timeouts += 1
        self.failures.append(f"timeout: {what}")

    def record_growth(self, nbytes: int, allowed: int = EXTRA_NBYTES) -> None:
        """Record the memory growth of a service, bytes."""
        self.grown_nbytes = nbytes
        if nbytes > allowed:
            self.failures.append(f"memory grew by {nbytes >> 20} MiB, {allowed >> 20} MiB allowed")

    @property
    def faults(self) -> int:
        """Number of responses with a 5xx status that is not allowed."""
        return sum(count for name, count in self.outcomes.items() if name.isdigit() and is_fault(int(name)))

    def row(self) -> list[str]:
        """Return a row of the table."""
        seen = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))
        grown = "" if self.grown_nbytes is None else f"{self.grown_nbytes / 2**20:+.0f}"
        crashes = len(self.failures) - self.timeouts - self.faults
        cells = [self.target, f"{self.seconds:.0f}", self.cases, seen, self.faults, crashes, self.timeouts, grown]
        return [str(cell) for cell in cells]


HEADINGS = ["target", "s", "cases", "outcomes", "5xx", "other failures", "timeouts", "MiB"]


def table(tallies: list[Tally]) -> str:
    """Return a Markdown table of all targets."""
    rows = [HEADINGS, *(tally.row() for tally in tallies)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
