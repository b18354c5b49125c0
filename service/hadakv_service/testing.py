"""Run the service as a child process, for demos, tests and benchmarks."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import IO

STOP_SECONDS = 20


@dataclass(frozen=True, slots=True)
class RunningService:
    """Service that runs in a child process.

    Attributes:
        url: base URL, without a trailing slash.
        startup_line: line printed when the service was ready.
        process: child process.
    """

    url: str
    startup_line: str
    process: "subprocess.Popen[str]"


@contextmanager
def running_service(
    *flags: str, program: Sequence[str] = ("-m", "hadakv_service"), log: IO[str] | int | None = None
) -> Iterator[RunningService]:
    """Start the service on a free loopback port, and stop it when the block ends.

    Args:
        flags: additional flags of `python -m hadakv_service`. Without `--data-dir` the disk is disabled and the
            data directory is an empty one.
        program: arguments of the Python interpreter before the flags.
        log: file for the log of the service; by default the stderr of this process.

    Yields:
        the running service.

    Raises:
        RuntimeError: the service did not start. The reason is in the message or on stderr.
    """
    # Without a disk the service still looks into its data directory. It must not be the one of this user.
    with TemporaryDirectory(prefix="hadakv-") as empty:
        disk_flags = () if "--data-dir" in flags else ("--disk-budget", "0", "--data-dir", empty)
        command = [sys.executable, *program, "--port", "0", *disk_flags, *flags]
        yield from _run(command, log)


def _run(command: Sequence[str], log: IO[str] | int | None) -> Iterator[RunningService]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        address = re.search(r"https?://\S+?(?=,)", line)
        if address is None:
            raise RuntimeError(f"the service did not start: {line or 'see its log above'}")
        yield RunningService(address[0], line, process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
