"""Helpers that run the program `hadakv` as a child process."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

PROGRAM = [sys.executable, "-m", "hadakv_cli"]

Finished = subprocess.CompletedProcess[str]


def environment(url: str = "", **more: str) -> dict[str, str]:
    """Return this process's environment, with these HADAKV variables only."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HADAKV_")}
    return kept | ({"HADAKV_URL": url} if url else {}) | more


def run_program(
    folder: Path, *arguments: object, url: str = "", program: list[str] = PROGRAM, **variables: str
) -> Finished:
    """Run the program in a folder and wait for it."""
    command = [*program, *map(str, arguments)]
    named = environment(url, **variables)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=folder, env=named)


def assert_fails(finished: Finished, status: int, message: str) -> None:
    """Assert that the program printed one line on stderr and nothing else."""
    assert (finished.returncode, finished.stdout) == (status, ""), finished
    assert re.fullmatch(f"hadakv: {message}\n", finished.stderr), finished.stderr


def start_on_terminal(url: str, folder: Path, *arguments: str) -> tuple["subprocess.Popen[str]", int]:
    """Start the program with a terminal as stderr. Return the process, and a descriptor to read the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=theirs, text=True, cwd=folder, env=environment(url)
    )
    os.close(theirs)
    return process, ours


def read_terminal(terminal: int) -> str:
    """Return everything that a program writes to a terminal before it exits, and close the terminal."""
    output = b""
    try:
        while chunk := os.read(terminal, 1 << 16):
            output += chunk
    except OSError:  # On Linux, a read fails after the last program has closed the other side.
        pass
    os.close(terminal)
    return output.decode()
