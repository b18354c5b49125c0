"""Starts the service, puts load on it with locust and prints locust's table; fails if any call did.

Arguments it does not know go to locust, which has this project's options too: see `locustfile.py`.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hadakv_service.testing import running_service

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
STOP_SECONDS = 30


def main() -> int:
    """The command line; returns the exit status, 0 if every call was answered as it should be."""
    # Without abbreviations, so that locust's options are not taken for these.
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seconds", type=int, default=30, help="how long the load lasts (default: %(default)s)")
    parser.add_argument("--users", type=int, default=16, help="how many callers at once (default: %(default)s)")
    options, further = parser.parse_known_args()
    with running_service("--memory-budget", "2GiB") as service:
        print(service.startup_line, flush=True)
        return subprocess.run(command(service.url, options.users, options.seconds, further), check=False).returncode


def command(url: str, users: int, seconds: int, further: Sequence[str]) -> list[str]:
    """How locust is called. All users start at once, and each ends its call before it stops."""
    return [
        *(sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--host", url),
        *("--headless", "--only-summary", "--stop-timeout", str(STOP_SECONDS)),
        *("--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s"),
        *further,
    ]


if __name__ == "__main__":
    sys.exit(main())
