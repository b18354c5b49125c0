"""Fault injection: kill the service, fill the disk, lose power. After each fault, read and compare every session.

`python tests/fault_injection/run.py --rounds 200` prints a table. The exit status is 1 if a promise was broken.
"""

import argparse
import faulthandler
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from fault_injection.faults import disk
from fault_injection.faults.schedule import KINDS, Plan, schedule
from fault_injection.report import Violation
from fault_injection.rounds import Rounds

SERVICE = ("-m", "hadakv_service")
RUN_MUTATED = Path(__file__).with_name("run_mutated.py")
# Maximum time of a round, and of everything else. After that the process ends, and the service with it.
ROUND_SECONDS, OTHER_SECONDS = 60.0, 600.0


def main() -> int:
    """Run the command line; return the exit status, 0 if no promise was broken."""
    options = _options()
    disk.enter_namespace()
    faulthandler.dump_traceback_later(OTHER_SECONDS + ROUND_SECONDS * options.rounds, exit=True)
    folder = Path(tempfile.mkdtemp(prefix="hadakv-faults-"))
    program = (str(RUN_MUTATED), str(options.service)) if options.service else SERVICE
    rounds = Rounds(folder, options.seed, program)
    began, plan = time.monotonic(), None
    try:
        for plan in schedule(options.rounds, options.seed, options.seconds, options.only):
            rounds.play(plan)
            if options.verbose:
                print(f"{plan.number:4} {plan.kind:8} {rounds.tally['tokens']:9,} tokens", flush=True)
        plan = Plan(options.rounds + 1, "the end", "", 0.0)
        rounds.finish(plan)
    except Violation as violation:
        rounds.tally.violations[:] = rounds.tally.violations or [str(violation)]
    except Exception as error:
        rounds.tally.violation(f"{error!r}\n{traceback.format_exc()}")
    print(rounds.tally.table(options.seed, time.monotonic() - began, KINDS))
    if rounds.tally.violations:
        assert plan is not None
        _report(rounds, plan, options)
        return 1
    shutil.rmtree(folder)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="number of rounds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=20260, help="random seed (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="maximum seconds of a round (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=KINDS, help="kinds of rounds to run (default: all)")
    parser.add_argument("--service", type=Path, help="folder with the copy of hadakv_service to run")
    parser.add_argument("--verbose", action="store_true", help="print a line for each round")
    return parser.parse_args()


def _report(rounds: Rounds, plan: Plan, options: argparse.Namespace) -> None:
    print(f"\nround {plan.number}, {KINDS.get(plan.kind, plan.kind)}:")
    for violation in rounds.tally.violations[:5]:
        print(f"  {violation}")
    again = f"--seed {options.seed} --rounds {options.rounds} --seconds {options.seconds:g}"
    again += f" --only {' '.join(options.only)}" if options.only else ""
    again += f" --service {options.service}" if options.service else ""
    print(f"data directory, with the log of each round next to it: {rounds.data}")
    print(f"to repeat (thread timing differs): python tests/fault_injection/run.py {again}")


if __name__ == "__main__":
    sys.exit(main())
