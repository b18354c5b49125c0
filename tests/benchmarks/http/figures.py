"""Samples, tables and aims."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


def median(samples: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(samples)


def speed(samples: Sequence[float], than: Sequence[float]) -> float:
    """Return the relative speed: the median of ratios within a round, because a disturbance affects both."""
    return median([theirs / mine for mine, theirs in zip(samples, than, strict=False)])


def percentile(samples: Sequence[float], percent: int) -> float:
    """Return a percentile: the smallest sample that is at least as large as `percent` of the samples."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


@dataclass(frozen=True, slots=True)
class Aim:
    """Aim for a figure.

    Attributes:
        at_least: whether larger is better.
    """

    what: str
    aim: float
    measured: float
    unit: str
    at_least: bool

    @property
    def reached(self) -> bool:
        """Return whether the aim is reached."""
        return self.measured >= self.aim if self.at_least else self.measured <= self.aim

    def row(self) -> list[str]:
        """Return the row of a table."""
        sign = ">=" if self.at_least else "<="
        verdict = "reached" if self.reached else "missed"
        return [self.what, f"{sign} {self.aim:g} {self.unit}", f"{self.measured:.2f} {self.unit}", verdict]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the JSON file."""
        return asdict(self) | {"reached": self.reached}


def at_least(what: str, aim: float, measured: float, unit: str = "x") -> Aim:
    """Return an aim where larger is better."""
    return Aim(what, aim, measured, unit, at_least=True)


def at_most(what: str, aim: float, measured: float, unit: str = "x") -> Aim:
    """Return an aim where smaller is better."""
    return Aim(what, aim, measured, unit, at_least=False)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. The first column is aligned left, the others right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rule = [f"{'-' * widths[0]}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    shown = [lines[0], rule, *lines[1:]]
    cells = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in shown
    ]
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in cells), ""])
