"""The service as a process that may end at any moment."""

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
    """A process of the service. At the end of a `with` block it is gone, whatever happened.

    Args:
        program: what Python is to run.
        flags: its flags.
        environment: what it has beside this process's own.
        log: where its messages go.
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
        """Wait for its first line: where it answers, and how many seconds it took.

        Raises:
            Violation: it ended, or said nothing for too long.
        """
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline().decode() if selector.select(START_SECONDS) else ""
        address = re.search(r"http://\S+?(?=,)", line)
        if address is None:
            raise Violation(f"the service did not start: {line!r}; {self.last_words()}")
        return address[0], time.monotonic() - self._began

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it with no warning."""
        self._process.kill()

    def terminate(self) -> None:
        """Tell it to end."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> int:
        """Its exit code, once it has ended.

        Raises:
            Violation: it has not after so long.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Violation(f"the service did not end within {seconds:g} s; {self.last_words()}") from None

    def last_words(self) -> str:
        """The end of its messages."""
        return "its last messages: " + " | ".join(self._log.read_text(errors="replace").splitlines()[-5:])

    def complaint(self) -> str:
        """A message of an error that nobody foresaw, if there is one."""
        text = self._log.read_text(errors="replace")
        found = re.search(r"^.*(unexpected error|Traceback|Exception in ASGI|Fatal Python).*$", text, re.MULTILINE)
        return found[0] if found else ""
