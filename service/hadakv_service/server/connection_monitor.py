"""Looks after all connections: ends those that take too long, and finds room for new ones."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from hadakv_service.errors import Busy, ServiceError

# At most so long after it is too late is it noticed.
MOST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may do.

    Attributes:
        head_nbytes: largest request line and headers, and trailers.
        connections: how many there may be.
        idle_seconds: without a request.
        head_seconds: from the first byte of a head to its last.
        body_seconds: how far a body or an answer may fall behind `rate`.
        rate: bytes a second that a body must come with, and an answer be taken.
    """

    max_header_nbytes: int
    max_connections: int
    idle_seconds: float
    header_timeout: float
    stall_timeout: float
    min_bytes_per_second: int


class Connection(Protocol):
    """What the watch has to know of a connection."""

    @property
    def last_activity(self) -> float:
        """When something last came."""
        ...

    def is_idle(self) -> bool:
        """Whether it has no request under way, and nothing to send."""
        ...

    def check_timeouts(self, now: float) -> None:
        """End it if it takes too long."""
        ...

    def end(self) -> None:
        """End it."""
        ...

    def reject(self, error: ServiceError) -> None:
        """End it and say why."""
        ...


class ConnectionMonitor:
    """Looks at every connection now and then.

    Args:
        connections: all there are, whichever these are at the time.
        limits: for each of them.
        loop: whose clock and timers are used.
    """

    def __init__(self, connections: Collection[Connection], limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        self._connections = connections
        self._loop = loop
        self._seconds = min(MOST_SECONDS, min(limits.idle_seconds, limits.header_timeout, limits.stall_timeout) / 4)
        self._timer: asyncio.TimerHandle | None = None
        # Stands still while the loop does: that what came meanwhile was not read is not the peers' doing.
        self._clock = 0.0
        self._looked = loop.time()
        # Free connections, the one idle for longest last, with when each was heard.
        self._idle: list[tuple[float, Connection]] = []

    def start(self) -> None:
        """Look from now on."""
        self._timer = self._loop.call_later(self._seconds, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer:
            self._timer.cancel()

    def _look(self) -> None:
        self.start()
        self._idle = []
        now = self._loop.time()
        self._clock += min(now - self._looked, 2 * self._seconds)
        self._looked = now
        for connection in list(self._connections):
            connection.check_timeouts(self._clock)

    def admit(self, newcomer: Connection) -> None:
        """Let a new connection stay, in place of the one idle for longest if there are too many."""
        if len(self._connections) <= self.limits.max_connections:
            return
        idle = self._longest_idle(newcomer)
        if idle is None:
            newcomer.reject(Busy("All connections are in use."))
        else:
            idle.end()

    def _longest_idle(self, newcomer: Connection) -> Connection | None:
        """One that is free. They are sorted once and then taken one by one: many may come at once."""
        while self._idle:
            heard, connection = self._idle.pop()
            if connection.last_activity == heard and connection.is_idle():
                return connection
        free = [(each.last_activity, each) for each in self._connections if each is not newcomer and each.is_idle()]
        self._idle = sorted(free, key=lambda entry: entry[0], reverse=True)
        return self._idle.pop()[1] if self._idle else None
