"""Signals during the start. SIGHUP: reload the token file, or end the service, also when its terminal was closed."""

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Importing it takes time, and this module is imported before the settings are checked.
    import asyncio

# Exit status after Ctrl-C, as in a shell.
EXIT_INTERRUPTED = 128 + signal.SIGINT
TERMINAL = "/dev/tty"
# A shell may send SIGHUP shortly before the terminal is gone. Look again after this time.
LOOK_AGAIN_SECONDS = 1.0


def end_at_once_on_signals() -> None:
    """Let SIGINT and SIGTERM end the process at once, until the server handles them.

    Nothing is stored before that, and the disk store is consistent at any moment. An exception instead could be lost:
    libraries that are being imported ignore exceptions in some of their callbacks.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Shells start background processes with SIGINT ignored. Handle it nevertheless.
    signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))


def has_terminal() -> bool:
    """Whether the process has a terminal that can be opened."""
    try:
        os.close(os.open(TERMINAL, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


class HangUp:
    """Handler of SIGHUP, from the start of the process on.

    Create it in the main thread before anything else. A SIGHUP during the start is noted, and takes effect as soon as
    the event loop runs, so that it cannot interrupt the start halfway. A SIGHUP that is ignored at the start, as
    `nohup` has it, stays ignored.
    """

    def __init__(self) -> None:
        self._is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self._had_terminal = has_terminal()
        self._is_noted = False
        self._loop: asyncio.AbstractEventLoop | None = None
        if not self._is_ignored:
            signal.signal(signal.SIGHUP, self._note)

    def _note(self, *_: object) -> None:
        self._is_noted = True

    def handle(
        self, loop: "asyncio.AbstractEventLoop", end: Callable[[], object], reload: Callable[[], object] | None
    ) -> None:
        """Handle the signal on the event loop from now on.

        Args:
            loop: event loop.
            end: ends the service in good order.
            reload: reloads the token file; None without one. SIGHUP then ends the service.
        """
        self._loop, self._end, self._reload = loop, end, reload
        if self._is_ignored:
            return
        loop.add_signal_handler(signal.SIGHUP, self._receive)
        if self._is_noted:
            self._receive()

    def _receive(self) -> None:
        assert self._loop is not None
        if self._reload is None or self._is_hung_up():
            self._stop()
        else:
            self._reload()
            self._loop.call_later(LOOK_AGAIN_SECONDS, self._stop_if_hung_up)

    def _stop_if_hung_up(self) -> None:
        if self._is_hung_up():
            self._stop()

    def _is_hung_up(self) -> bool:
        return self._had_terminal and not has_terminal()

    def _stop(self) -> None:
        assert self._loop is not None
        self._loop.remove_signal_handler(signal.SIGHUP)
        # Terminals and shells may both send SIGHUP. A second one must not end the process while it writes.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._end()
