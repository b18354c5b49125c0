"""Journal of the equality matrix: a file of JSON lines with the outcome of every name, and a table of them.

The last line of a name counts. Processes append to one file. Each line is written at once, so it survives a crash of
the process.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metal_emulator.proofs.outputs import Output

# Outcomes of a name. Only the first one is a success.
OUTCOMES = EQUAL, DIFFERENT, FAILED, WAITING = "equal", "different", "failed", "unfinished"
PARTS = ("packed", "norms", "values")


@dataclass
class Record:
    """Outcome of one name.

    Attributes:
        kind: row of the table.
        runs: number of compared runs.
        compared: number of elements of each part: packed bytes, norms, and values (decoded or diagnostic).
        different: number of elements in which a bit differs from the reference.
        why: reason of a failure.
    """

    kind: str
    name: str
    outcome: str = WAITING
    runs: int = 0
    compared: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    different: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    why: str = ""

    def add(self, outputs: Iterable[Output]) -> None:
        """Add the outputs of one run."""
        self.runs += 1
        for output in outputs:
            part = next((part for part in PARTS[:2] if output.name.endswith(part)), "values")
            self.compared[part] += output.expected.size
            self.different[part] += output.differing
            if output.differing:
                self.why += f" {output.differing} of {output.expected.size} {output.name} in run {self.runs};"
        self.outcome = DIFFERENT if any(self.different.values()) else EQUAL


@dataclass(frozen=True)
class Journal:
    """The journal file.

    Attributes:
        path: the file.
        about: device and sources of the run; a file of other sources or another device is overwritten.
    """

    path: Path
    about: Mapping[str, Any]

    def begin(self) -> None:
        """Keep the records of an earlier run of the same sources on the same device, or start a new file."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        if not lines or json.loads(lines[0]) != self.about:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.about) + "\n")

    def write(self, record: Record) -> None:
        """Append a record."""
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def records(self) -> dict[str, Record]:
        """Return the last record of every name."""
        lines = self.path.read_text().splitlines()[1:]
        return {record.name: record for record in (Record(**json.loads(line)) for line in lines)}


def all_equal(records: Mapping[str, Record]) -> bool:
    """Whether there are records, and all of them are equal."""
    return bool(records) and all(record.outcome == EQUAL for record in records.values())


def table(records: Mapping[str, Record]) -> str:
    """Format a row for each kind and one for all, then every name that is not equal, with the reason."""
    everything = list(records.values())
    kinds = dict.fromkeys(record.kind for record in everything)
    rows = [_HEADS, *(_row(kind, [r for r in everything if r.kind == kind]) for kind in kinds), _row("all", everything)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])  # words left, numbers right
        for row in rows
    ]
    bad = [f"{record.outcome}: {record.name}:{record.why}" for record in everything if record.outcome != EQUAL]
    return "\n".join([*lines, *bad])


_HEADS = ("", "names", *OUTCOMES, "runs", *(head for part in PARTS for head in (part, "differ")))


def _row(kind: str, group: Sequence[Record]) -> tuple[str, ...]:
    outcomes = Counter(record.outcome for record in group)
    counts = [len(group), *(outcomes[outcome] for outcome in OUTCOMES), sum(record.runs for record in group)]
    for part in PARTS:
        counts += [sum(record.compared[part] for record in group), sum(record.different[part] for record in group)]
    return (kind, *(f"{count:,}" for count in counts))
