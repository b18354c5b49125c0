"""Benchmarks of sessions: run them and print tables."""

import argparse
import json
from pathlib import Path

from benchmarks import machine
from benchmarks.sessions import ack, length, many, tier

SECTIONS = {
    "length": length,
    "ack": ack,
    "tier": tier,
    "many": many,
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and less data: less precise figures")
    parser.add_argument("--only", choices=SECTIONS, help="run one section only")
    options = parser.parse_args()
    on = machine.describe()
    print(*(f"{name}: {value}" for name, value in on.items()), "", sep="\n", flush=True)
    found: dict[str, object] = {"machine": on}
    for name, section in SECTIONS.items():
        if options.only in (None, name):
            found[name] = section.measure(quick=options.quick)
            print(section.report(found[name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
