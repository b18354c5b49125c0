"""Inject deliberate faults into a copy of the service, and find the round that detects each.

`python tests/fault_injection/mutants.py` prints the table. A fault replaces one passage of a file.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from fault_injection.mutations import MUTATIONS, Mutation

RUN = Path(__file__).with_name("run.py")
TIMEOUT_SECONDS = 900


def mutated_copy(mutation: Mutation | None, folder: Path) -> Path:
    """Copy the service into a folder, with a fault; return the folder.

    Raises:
        LookupError: the passage to replace does not occur exactly once.
    """
    shutil.copytree(
        str(files("hadakv_service")), folder / "hadakv_service", ignore=shutil.ignore_patterns("__pycache__")
    )
    if mutation:
        path = folder / "hadakv_service" / mutation.file
        text = path.read_text("utf-8")
        if text.count(mutation.right) != 1:
            raise LookupError(
                f"{mutation.file} contains {mutation.right!r} {text.count(mutation.right)} times, expected once"
            )
        path.write_text(text.replace(mutation.right, mutation.wrong), "utf-8")
    return folder


def seen(mutation: Mutation | None, seed: int, rounds: int, kinds: tuple[str, ...] = ()) -> tuple[str, str]:
    """Return the number of the round that detects a fault, and the violation; empty strings if none does."""
    with tempfile.TemporaryDirectory() as name:
        folder = mutated_copy(mutation, Path(name) / "mutated_copy")
        command = [sys.executable, str(RUN), "--service", str(folder), "--seed", str(seed), "--rounds", str(rounds)]
        command += ["--only", *(mutation.kinds if mutation else kinds)]
        environment = os.environ | {"TMPDIR": name}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        found = re.search(r"^round (\d+), (.*):\n  (.*)", done.stdout, re.MULTILINE)
        if done.returncode == 0 and not found:
            return "", ""
        if not found:
            raise RuntimeError(f"the rounds failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return found[1], found[3]


def main() -> int:
    """Print the table; return the exit status, 0 if every fault was detected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="maximum rounds for each fault (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=20260, help="random seed (default: %(default)s)")
    parser.add_argument("--only", nargs="+", help="run only faults whose names contain one of these words")
    options = parser.parse_args()
    chosen = {
        name: mutation
        for name, mutation in MUTATIONS.items()
        if not options.only or any(w in name for w in options.only)
    }
    missed = 0
    for name, mutation in chosen.items():
        number, text = seen(mutation, options.seed, options.rounds)
        missed += not number
        print(f"{name:62} {number or '-':>3}  {text[:150]}", flush=True)
    print(f"{len(chosen)} faults, {len(chosen) - missed} detected")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
