"""What a target of the fuzzing saw: cases, statuses, and everything that must not be."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# A service may say that it is busy or full. Whatever else begins with 5 is a fault of ours.
ALLOWED = {503, 507}
# As much as a service may have more at the end than it had when it was warm, beside its budget.
EXTRA_NBYTES = 192 << 20


def is_fault(status: int) -> bool:
    """Whether a status is a failure of the service."""
    return status >= 500 and status not in ALLOWED


@dataclass(frozen=True, slots=True)
class Limit:
    """When a target ends: after so many cases or so many seconds, whichever is first.

    Attributes:
        seed: the same seed gives the same cases.
    """

    seed: int = 1
    cases: int | None = None
    seconds: float | None = None

    def numbers(self) -> Iterator[int]:
        """Count cases as long as there may be more."""
        number, start = 0, time.monotonic()
        while (self.cases is None or number < self.cases) and (
            self.seconds is None or time.monotonic() - start < self.seconds
        ):
            yield number
            number += 1


@dataclass(slots=True)
class Tally:
    """The count.

    Attributes:
        target: what was fuzzed.
        cases: how many requests, or inputs where there is no service.
        outcomes: statuses, or what an input was found to be, with their counts.
        failures: what must not be, each in a line.
        hangs: requests that were not answered in time.
        grown_nbytes: memory that the service had more at the end; None where there is none.
        seconds: how long it took.
    """

    target: str
    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    hangs: int = 0
    grown_nbytes: int | None = None
    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, status: int, what: str) -> None:
        """Count an answer."""
        self.note_all([status], what)

    def note_all(self, statuses: Iterable[int], what: str) -> None:
        """Count a case that may have any number of answers."""
        with self._lock:
            self.cases += 1
            self.outcomes.update(map(str, statuses))
        self._blame(statuses, what)

    def _blame(self, statuses: Iterable[int], what: str) -> None:
        self.failures += [f"{status}: {what}" for status in statuses if is_fault(status)]

    def note_hang(self, what: str) -> None:
        """Count a request that nobody answered in time."""
        with self._lock:
            self.cases += 1
            self.hangs += 1
        self.failures.append(f"no answer in time: {what}")

    def note_grown(self, nbytes: int, allowed: int = EXTRA_NBYTES) -> None:
        """Note how much memory a service has more than before."""
        self.grown_nbytes = nbytes
        if nbytes > allowed:
            self.failures.append(f"{nbytes >> 20} MiB more than before, {allowed >> 20} are allowed")

    @property
    def faults(self) -> int:
        """Answers of 500 and above that may not be."""
        return sum(count for name, count in self.outcomes.items() if name.isdigit() and is_fault(int(name)))

    def row(self) -> list[str]:
        """The line of the table."""
        seen = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))
        grown = "" if self.grown_nbytes is None else f"{self.grown_nbytes / 2**20:+.0f}"
        crashes = len(self.failures) - self.hangs - self.faults
        cells = [self.target, f"{self.seconds:.0f}", self.cases, seen, self.faults, crashes, self.hangs, grown]
        return [str(cell) for cell in cells]


HEADINGS = ["target", "s", "cases", "outcomes", "5xx", "other failures", "hangs", "MiB"]


def table(tallies: list[Tally]) -> str:
    """All targets, as a table that Markdown reads too."""
    rows = [HEADINGS, *(tally.row() for tally in tallies)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
