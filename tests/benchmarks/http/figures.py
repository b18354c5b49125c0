"""Samples, tables and aims."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


def median(samples: Sequence[float]) -> float:
    """The median."""
    return statistics.median(samples)


def speed(samples: Sequence[float], than: Sequence[float]) -> float:
    """How many times as fast as another, the median over rounds: what disturbs a round disturbs both."""
    return median([theirs / mine for mine, theirs in zip(samples, than, strict=False)])


def percentile(samples: Sequence[float], percent: int) -> float:
    """The smallest sample that is not below `percent` of them."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


@dataclass(frozen=True, slots=True)
class Aim:
    """A figure that was aimed at.

    Attributes:
        at_least: whether more is better.
    """

    what: str
    aim: float
    measured: float
    unit: str
    at_least: bool

    @property
    def reached(self) -> bool:
        """Whether the aim is reached."""
        return self.measured >= self.aim if self.at_least else self.measured <= self.aim

    def row(self) -> list[str]:
        """As a row of a table."""
        sign = ">=" if self.at_least else "<="
        verdict = "reached" if self.reached else "missed"
        return [self.what, f"{sign} {self.aim:g} {self.unit}", f"{self.measured:.2f} {self.unit}", verdict]

    def to_json(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        return asdict(self) | {"reached": self.reached}


def at_least(what: str, aim: float, measured: float, unit: str = "x") -> Aim:
    """An aim where more is better."""
    return Aim(what, aim, measured, unit, at_least=True)


def at_most(what: str, aim: float, measured: float, unit: str = "x") -> Aim:
    """An aim where less is better."""
    return Aim(what, aim, measured, unit, at_least=False)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rule = [f"{'-' * widths[0]}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    shown = [lines[0], rule, *lines[1:]]
    cells = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in shown
    ]
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in cells), ""])
