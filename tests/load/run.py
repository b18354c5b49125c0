"""Start the service, load it with locust, and print locust's table. The exit status is 1 if a request failed.

Unknown arguments are passed to locust, which also has the options of `locustfile.py`.
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
    """Run the command line; return the exit status, 0 if every request succeeded."""
    # No abbreviations: locust's options could be taken for these.
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seconds", type=int, default=30, help="duration (default: %(default)s)")
    parser.add_argument("--users", type=int, default=16, help="concurrent users (default: %(default)s)")
    options, further = parser.parse_known_args()
    with running_service("--memory-budget", "2GiB") as service:
        print(service.startup_line, flush=True)
        return subprocess.run(command(service.url, options.users, options.seconds, further), check=False).returncode


def command(url: str, users: int, seconds: int, further: Sequence[str]) -> list[str]:
    """Return the command that runs locust. All users start at once, and finish their requests before they stop."""
    return [
        *(sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--host", url),
        *("--headless", "--only-summary", "--stop-timeout", str(STOP_SECONDS)),
        *("--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s"),
        *further,
    ]


if __name__ == "__main__":
    sys.exit(main())
