"""Turns of the callers of one session handle. Calls that change the session run one after the other.

Two appends at the same time would take the same position, and the service would take one for a repetition of the other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import TypeVar

from hadakv_client.http.connections import forks
from hadakv_client.http.connections.asyncio_streams import running_loop

T = TypeVar("T")


class Turns:
    """Turns of threads."""

    def __init__(self) -> None:
        self.reset_after_fork()
        forks.register(self)

    def reset_after_fork(self) -> None:
        """Replace the lock. In the child, a thread that held it does not exist."""
        self._lock = Lock()
        self._owner: int | None = None

    def run(self, work: Callable[[], T]) -> T:
        """Do work when it is its turn.

        Raises:
            RuntimeError: work of the same thread is in progress, and called this from a progress callback.
        """
        lock = self._lock
        if lock.locked() and self._owner == get_ident():
            raise RuntimeError("a progress callback cannot change the session, because the call in progress changes it")
        # An exception of a signal handler cannot come between acquisition and block, as the lock is written in C.
        with lock:
            self._owner = get_ident()
            try:
                return work()
            finally:
                self._owner = None


class AsyncTurns:
    """Turns of tasks."""

    def __init__(self) -> None:
        self.reset_after_fork()
        forks.register(self)

    def reset_after_fork(self) -> None:
        """Replace the lock. In the child, a task that held it does not exist."""
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do work when it is its turn.

        Raises:
            RuntimeError: work of another event loop is in progress, or no event loop of asyncio runs.
        """
        async with self._lock_of_loop():
            return await work()

    def _lock_of_loop(self) -> asyncio.Lock:
        loop = running_loop()
        if self._loop is not loop:
            if self._lock.locked() and self._loop is not None and not self._loop.is_closed():
                raise RuntimeError("another event loop changes the session with this handle")
            self._lock, self._loop = asyncio.Lock(), loop
        return self._lock


class Changes:
    """Calls that change a session. They tell a call that only reads whether its result may be outdated."""

    def __init__(self) -> None:
        self._count = 0
        self._current: object | None = None

    @contextmanager
    def change(self) -> Iterator[None]:
        """Change the session in the block."""
        self._count += 1
        self._current = change = object()
        try:
            yield
        finally:
            if self._current is change:
                self._current = None

    def version(self) -> int | None:
        """Return a number that differs after a change; None during one."""
        return None if self._current else self._count
