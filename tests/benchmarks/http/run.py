"""Benchmarks over HTTP: run them, print tables, and compare with the aims."""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.http.figures import Aim, table
from benchmarks.http.sections import bulk, interference, memory, small


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: less than a minute, less precise figures")
    options = parser.parse_args()
    found = _run(quick=options.quick)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def _run(*, quick: bool) -> dict[str, Any]:
    on = machine.describe()
    print(*(f"{name}: {value}" for name, value in on.items()), "", sep="\n", flush=True)
    found: dict[str, Any] = {"machine": on}
    aims: list[Aim] = []
    sections = (
        ("bulk", bulk, (3 if quick else 15,)),
        ("small", small, (2, 200, 0.2) if quick else (5, 500, 0.6)),
        ("interference", interference, (1, 200) if quick else (4, 500)),
        ("memory", memory, ()),
    )
    for name, section, arguments in sections:
        measured = section.measure(*arguments)
        print(section.report(measured), flush=True)
        found[name] = section.to_json(measured)
        aims += section.aims(measured)
    found["aims"] = [aim.to_json() for aim in aims]
    print(table("Aims; without codec except for memory", ["", "aim", "measured", ""], [aim.row() for aim in aims]))
    return found
