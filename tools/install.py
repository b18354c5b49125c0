"""Run `pip install` and show what it does: `python tools/install.py ARGUMENTS OF PIP`.

A terminal gets one line that changes, with the seconds so far. A log gets one line per phase. The output of pip is
printed only if it fails.
"""

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, TextIO

# First words of a line of pip, and the phase that the line belongs to.
PHASES = {
    "Collecting": "finding and downloading packages",
    "Installing build dependencies": "downloading the build tools",
    "Building editable": "compiling the codec",
    "Building wheel": "compiling the codec",
    "Installing collected packages": "installing packages",
}
# First words of the lines of pip that a terminal shows as they are.
DETAILS = ("Collecting", "Downloading", "Obtaining", "Processing", "Using cached")
TICK_SECONDS = 1.0
COLUMNS = 79


def phase_of(line: str) -> str | None:
    """Return the phase that a line of pip begins, or None."""
    return next((phase for words, phase in PHASES.items() if line.strip().startswith(words)), None)


def detail_of(line: str) -> str | None:
    """Return what a terminal shows for a line of pip, or None if the line says nothing new."""
    line = line.strip()
    return line.partition(" (from")[0] if line.startswith(DETAILS) else phase_of(line)


class Progress:
    """Progress of an installation, written to a stream.

    Args:
        stream: stream to write to.
        is_terminal: whether a line may be overwritten.
    """

    def __init__(self, stream: TextIO, *, is_terminal: bool) -> None:
        self._stream = stream
        self._is_terminal = is_terminal
        self._started = time.monotonic()
        self._phases: set[str] = set()
        self._shown = "starting pip"

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def update(self, line: str | None) -> None:
        """Show a line of pip, or with None only the time."""
        if self._is_terminal:
            self._shown = detail_of(line or "") or self._shown
            self._write(f"\r\033[K{f'  {self.seconds:3.0f} s  {self._shown}'[:COLUMNS]}")
        elif line and (phase := phase_of(line)) and phase not in self._phases:
            self._phases.add(phase)
            self._write(f"  {self.seconds:3.0f} s  {phase}\n")

    def finish(self) -> None:
        """Show that the installation is complete."""
        self._write(f"{self._cleared}  {self.seconds:3.0f} s  installed\n")

    def clear(self) -> None:
        """Remove the line that changes."""
        self._write(self._cleared)

    @property
    def _cleared(self) -> str:
        return "\r\033[K" if self._is_terminal else ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def lines_and_ticks(stream: IO[str]) -> Iterator[str | None]:
    """Yield each line of a stream, and None after each TICK_SECONDS without a line."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=TICK_SECONDS)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line


def install(command: Sequence[str], progress: Progress) -> tuple[int, str]:
    """Run a command and report its progress.

    Returns:
        the exit status of the command and its whole output.
    """
    output = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in lines_and_ticks(process.stdout):
            output.append(line or "")
            progress.update(line)
    return process.returncode, "".join(output)


def main() -> int:
    """Install, and return the exit status of pip."""
    progress = Progress(sys.stdout, is_terminal=sys.stdout.isatty())
    command = [sys.executable, "-m", "pip", "install", "--no-compile", "--progress-bar", "off", *sys.argv[1:]]
    try:
        status, output = install(command, progress)
    except KeyboardInterrupt:
        progress.clear()
        return 128 + signal.SIGINT
    if status:
        progress.clear()
        sys.stderr.write(output)
    else:
        progress.finish()
    return status


if __name__ == "__main__":
    sys.exit(main())
