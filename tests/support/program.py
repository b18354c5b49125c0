"""Run the service's program to its end."""

import os
import subprocess
import sys

PROGRAM = [sys.executable, "-m", "hadakv_service"]


def run(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [*PROGRAM, *flags], capture_output=True, text=True, timeout=60, env=os.environ | environment, check=False
    )
