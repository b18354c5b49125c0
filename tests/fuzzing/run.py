"""Fuzz the service and print a table: `make fuzz`, or `make fuzz ARGS="--seconds 300 --seed 7"`.

Each target gets a share of the time, and a service of its own if it needs one. The same seed gives the same cases. The
exit status is 1 if there was a failure.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from fuzzing.report import Limit, Tally, table
from fuzzing.targets import calls, connections, in_process, openapi_cases, sessions
from hadakv_service.testing import RunningService, running_service

SHOWN = 20


@contextmanager
def small_service() -> Iterator[RunningService]:
    """Start a service with little memory and a small disk, so that data passes through both."""
    with TemporaryDirectory() as folder:
        flags = ("--data-dir", folder, "--memory-budget", "2MiB", "--disk-budget", "8MiB", "--log-level", "error")
        with running_service(*flags) as service:
            yield service


def served(target: Callable[[RunningService, Limit], Tally]) -> Callable[[Limit], Tally]:
    """Give a target a service of its own."""

    def run(limit: Limit) -> Tally:
        with small_service() as service:
            return target(service, limit)

    return run


# Each target with its share of the time.
TARGETS: dict[str, tuple[Callable[[Limit], Tally], int]] = {
    "document": (served(openapi_cases.run), 6),
    "calls": (served(calls.run), 3),
    "sessions": (sessions.run, 6),
    "connections": (served(connections.run), 3),
    "parse": (lambda limit: in_process.run("parse", limit), 3),
    "protocol": (lambda limit: in_process.run("protocol", limit), 3),
}


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="total duration (default: %(default)s)")
    parser.add_argument("--examples", type=int, help="maximum cases per target; for document, per operation")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: %(default)s)")
    parser.add_argument("--only", choices=TARGETS, action="append", help="target; may be repeated (default: all)")
    options = parser.parse_args()
    chosen = {name: TARGETS[name] for name in options.only or TARGETS}
    shares = sum(share for _, share in chosen.values())
    tallies = []
    for name, (target, share) in chosen.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        tallies.append(timed(target, Limit(options.seed, options.examples, options.seconds * share / shares)))
    print(table(tallies))
    failures = [f"{tally.target}: {failure}" for tally in tallies for failure in tally.failures]
    for failure in failures[:SHOWN]:
        print(f"\n{failure[:4000]}")
    print(f"\nseed {options.seed}: " + (f"{len(failures)} failures" if failures else "no failures"))
    return 1 if failures else 0


def timed(target: Callable[[Limit], Tally], limit: Limit) -> Tally:
    """Run a target, and record its duration."""
    start = time.monotonic()
    tally = target(limit)
    tally.seconds = time.monotonic() - start
    return tally


if __name__ == "__main__":
    sys.exit(main())
