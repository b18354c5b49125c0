"""Run attacks on a service of its own, over loopback, and print a table: `python tests/attacks/run.py`.

To add an attack, add a function to one of the modules named here, or to a new one. It takes the `Target` and returns an
`Outcome`. If it needs a service with other settings, it starts one with `target(...)`.
"""

import argparse
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from time import monotonic

if __name__ == "__main__":
    # As with pytest, modules are imported from the folder above.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from attacks.attack import ATTACKS, Attack, Outcome, Target, target
from support.services import fork_server

MODULES = ("credentials", "ids", "oversized_lengths", "slow_clients", "browser_requests", "framing", "files")
FILES = 2048


def main() -> int:
    """Print the table; return the exit status, 0 if no attack succeeded."""
    argparse.ArgumentParser(prog="make attacks", description=(__doc__ or "").partition(": `")[0] + ".").parse_args()
    for module in MODULES:
        import_module(f"attacks.{module}")
    _, most = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (FILES, most))
    began = monotonic()
    # Attacks start a dozen services.
    fork_server.install()
    with target() as attacked:
        succeeded = table(attacked, ATTACKS)
    fork_server.uninstall()
    verdict = "none succeeded" if not succeeded else f"{len(succeeded)} SUCCEEDED: {', '.join(succeeded)}"
    print(f"\n{len(ATTACKS)} attacks in {monotonic() - began:.0f} s: {verdict}")
    return 1 if succeeded else 0


def table(attacked: Target, attacks: Mapping[str, Attack]) -> list[str]:
    """Run attacks and print a Markdown row for each; return the names of those that succeeded."""
    print("| attack | sent | came back | |", "|---|---|---|---|", sep="\n")
    succeeded = []
    for name, attack in attacks.items():
        outcome = tried(attacked, attack)
        verdict = "held" if outcome.held else "SUCCEEDED"
        print(f"| {name} | {outcome.sent} | {outcome.came_back} | {verdict} |".replace("\n", " "), flush=True)
        if not outcome.held:
            succeeded.append(name)
    return succeeded


def tried(attacked: Target, attack: Attack) -> Outcome:
    """Run an attack; return its outcome. It has also succeeded if the service is harmed afterwards."""
    outcome = attack(attacked)
    for harm, done in (("no longer works", not attacked.works()), ("logged an unexpected error", attacked.failed())):
        if done:
            return Outcome(outcome.sent, f"{outcome.came_back}; the service {harm}", held=False)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
