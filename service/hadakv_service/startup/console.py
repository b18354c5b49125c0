"""Lines that the service prints at its start and its end."""

import os
from contextlib import suppress

from hadakv_service import __version__
from hadakv_service.http.app_state import AppState
from hadakv_service.settings import human_size


def startup_lines(service: AppState, address: str) -> list[str]:
    """Return the version, backend, address and budgets in one line, then the sessions found and the page of the API."""
    memory = human_size(service.store.memory.limit)
    backend, disk = service.backend, service.store.disk
    disk_budget = f"disk budget {human_size(disk.budget)}" if disk.budget else "disk disabled"
    if disk.used > disk.budget:
        disk_budget += f" (exceeded: {human_size(disk.used)} stored)"
    lines = [
        f"hadakv {__version__}: {backend.name} backend ({backend.detail}), {address}, "
        f"memory budget {memory}, {disk_budget}"
    ]
    if disk.budget:
        lines.append(f"data directory {service.settings.data_dir}: {_counted(len(service.store), disk.used)} found")
    # Browsers do not open Unix sockets.
    if not service.settings.uds:
        lines.append(f"API documentation: {address}/docs")
    return lines


def _counted(sessions: int, nbytes: int) -> str:
    return f"{_number(sessions, 'session')} ({human_size(nbytes)})"


def _number(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"


class Console:
    """Lines about the start and the end of the service, on stdout.

    It writes to the file descriptor, which is safe in a signal handler. A closed terminal or pipe is no error.

    Args:
        is_quiet: write nothing.
    """

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._has_started = False

    def write(self, text: str) -> None:
        """Write a text."""
        if not self._is_quiet:
            with suppress(OSError):
                os.write(1, text.encode())

    def on_listening(self, service: AppState, address: str) -> None:
        """Say that the service is ready."""
        self._has_started = True
        self.write("\n".join([*startup_lines(service, address), ""]))

    def on_waiting(self, requests: int, seconds: float, is_interrupted: bool) -> None:
        """Say what the shutdown waits for, and after Ctrl-C what a second one does."""
        waiting = f"{_number(requests, 'request')} in progress"
        hint = "; Ctrl-C again ends at once, without writing" if is_interrupted else ""
        self.write(f"waiting for {waiting}, at most {seconds:g} s{hint}\n")

    def on_writing(self, sessions: int, nbytes: int) -> None:
        """Say what is about to be written to disk, unless the service has not started."""
        self._is_quiet = self._is_quiet or not self._has_started
        self.write(f"writing {_counted(sessions, nbytes)} ... " if sessions else "no sessions left to write\n")

    def on_written(self, unwritten: int) -> None:
        """Say how that went."""
        self.write("done\n" if not unwritten else f"{_number(unwritten, 'session')} not written, see the log\n")
