"""Start a service, put load on it with locust for a while, print locust's table; fails if any call failed.

python tests/load/run.py [--seconds 30] [--users 16] [further options of locust and of locustfile.py]
"""

import argparse
import subprocess
import sys
from pathlib import Path

from hadakv_service.spawn import running_service


def main() -> int:
    """Run locust headless and give its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--users", type=int, default=16)
    options, further = parser.parse_known_args()
    locustfile = Path(__file__).with_name("locustfile.py")
    with running_service("--memory-budget", "2GiB") as service:
        print(service.startup_line, flush=True)
        command = [
            sys.executable,
            "-m",
            "locust",
            "-f",
            str(locustfile),
            "--headless",
            "--only-summary",
            "--loglevel",
            "WARNING",
        ]
        command += ["--users", str(options.users), "--spawn-rate", str(options.users), "--host", service.url]
        return subprocess.run([*command, "--run-time", f"{options.seconds}s", *further], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
