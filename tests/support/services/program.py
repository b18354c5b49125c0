"""Programs that run the service: the module itself, and one without periodic maintenance."""

import os
import subprocess
import sys

PROGRAM = [sys.executable, "-m", "hadakv_service"]
# Maintenance is a job of the device, every 30 s. Without it, a test that counts jobs counts its own only.
WITHOUT_MAINTENANCE = (
    "-c",
    "from hadakv_service import __main__, maintenance; maintenance.MAINTENANCE_SECONDS *= 10_000; __main__.main()",
)
# The smallest --memory-budget is 1MiB. With a smaller one a few tokens are enough to fill memory.
WITH_TINY_MEMORY = (
    "-c",
    "from hadakv_service import __main__, settings; settings.MIN_MEMORY_BUDGET = 0; __main__.main()",
)


def run(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the service with flags until it exits; return its exit code and output."""
    return subprocess.run(
        [*PROGRAM, *flags], capture_output=True, text=True, timeout=60, env=os.environ | environment, check=False
    )
