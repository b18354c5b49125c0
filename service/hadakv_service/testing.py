"""Run the service as a child process, for demos, tests and benchmarks."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

STOP_SECONDS = 20


@dataclass(frozen=True, slots=True)
class RunningService:
    """A service in a process of its own.

    Attributes:
        url: where it answers.
        startup_line: what it said when it was ready.
        process: the process.
    """

    url: str
    startup_line: str
    process: "subprocess.Popen[str]"


@contextmanager
def running_service(
    *flags: str, program: Sequence[str] = ("-m", "hadakv_service"), log: IO[str] | int | None = None
) -> Iterator[RunningService]:
    """Start the service on a free loopback port, and stop it at the end of the block.

    Args:
        flags: further flags of `python -m hadakv_service`; without `--data-dir` it keeps nothing on disk.
        program: what Python is to run with them.
        log: where its log goes, if not where this process's goes.

    Raises:
        RuntimeError: it did not start; what it said is in the message or on stderr.
    """
    nothing_on_disk = () if "--data-dir" in flags else ("--disk-budget", "0")
    command = [sys.executable, *program, "--port", "0", *nothing_on_disk, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        address = re.search(r"https?://\S+?(?=,)", line)
        if address is None:
            raise RuntimeError(f"the service did not start: {line or 'see its messages above'}")
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
