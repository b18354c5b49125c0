"""Service process that may end at any time."""

import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fault_injection.report import Violation

START_SECONDS = 120.0


class Service:
    """Service process. It is killed at the end of the `with` block, if it still runs.

    Args:
        program: arguments of Python that start the service.
        flags: flags of the service.
        environment: environment variables added to those of this process.
        log: file for stderr.
    """

    def __init__(self, program: Sequence[str], flags: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        self._began = time.monotonic()
        with log.open("ab") as messages:
            self._process = subprocess.Popen(
                [sys.executable, *program, "--port", "0", *flags],
                stdout=subprocess.PIPE,
                stderr=messages,
                env=os.environ | environment,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def ready(self) -> tuple[str, float]:
        """Wait for the startup line.

        Returns:
            The URL, and the seconds since the start.

        Raises:
            Violation: the service ended, or did not start in time.
        """
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline().decode() if selector.select(START_SECONDS) else ""
        address = re.search(r"http://\S+?(?=,)", line)
        if address is None:
            raise Violation(f"the service did not start: {line!r}; {self.last_messages()}")
        return address[0], time.monotonic() - self._began

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send(signal.SIGTERM)

    def send(self, sent: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(sent)

    def wait(self, seconds: float) -> int:
        """Wait for the end of the process; return its exit code.

        Raises:
            Violation: the process did not end in time.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Violation(f"the service did not end within {seconds:g} s; {self.last_messages()}") from None

    def last_messages(self) -> str:
        """Return the last lines of the log."""
        return "last log lines: " + " | ".join(self._log.read_text(errors="replace").splitlines()[-5:])

    def has_logged(self, text: str) -> bool:
        """Whether the log contains a text."""
        return text in self._log.read_text(errors="replace")

    def complaint(self) -> str:
        """Return the first log line about an unexpected error; empty if there is none."""
        text = self._log.read_text(errors="replace")
        found = re.search(r"^.*(unexpected error|Traceback|Exception in ASGI|Fatal Python).*$", text, re.MULTILINE)
        return found[0] if found else ""
