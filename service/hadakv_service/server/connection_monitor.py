"""Check all connections for timeouts, and close idle ones when there are too many."""

import asyncio
from collections.abc import Collection
from typing import Protocol

from hadakv_service.errors import Busy, ServiceError
from hadakv_service.server.timeouts import Limits

# Maximum time between two checks of a connection.
MAX_INTERVAL_SECONDS = 1.0


class Connection(Protocol):
    """A connection, as the monitor needs it."""

    @property
    def last_activity(self) -> float:
        """When data arrived last, in seconds."""
        ...

    def is_idle(self) -> bool:
        """Whether no request is open and no data waits to be sent."""
        ...

    def check_timeouts(self, now: float) -> None:
        """Close the connection if its peer is too slow."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...

    def reject(self, error: ServiceError) -> None:
        """Send an error and close the connection."""
        ...


class ConnectionMonitor:
    """Periodic timeout check of all connections, and the limit on their number.

    Args:
        connections: the open connections; the server updates this collection.
        limits: limits for each connection.
        loop: event loop, for its clock and timers.
    """

    def __init__(self, connections: Collection[Connection], limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        self._connections = connections
        self._loop = loop
        shortest = min(limits.idle_seconds, limits.header_timeout, limits.stall_timeout)
        self._interval = min(MAX_INTERVAL_SECONDS, shortest / 4)
        self._timer: asyncio.TimerHandle | None = None
        # This clock pauses when the event loop is blocked, so peers are not blamed for data we did not read.
        self._clock = 0.0
        self._last_check = loop.time()
        # Idle connections with their last activity. The one idle for longest is at the end.
        self._idle: list[tuple[float, Connection]] = []

    def start(self) -> None:
        """Start the periodic checks."""
        self._timer = self._loop.call_later(self._interval, self._check)

    def stop(self) -> None:
        """Stop the periodic checks."""
        if self._timer:
            self._timer.cancel()

    def _check(self) -> None:
        self.start()
        self._idle = []
        now = self._loop.time()
        self._clock += min(now - self._last_check, 2 * self._interval)
        self._last_check = now
        for connection in list(self._connections):
            connection.check_timeouts(self._clock)

    def admit(self, newcomer: Connection) -> None:
        """Accept a new connection. If there are too many, close the one idle for longest, or reject the new one."""
        if len(self._connections) <= self.limits.max_connections:
            return
        idle = self._pop_longest_idle(newcomer)
        if idle is None:
            newcomer.reject(Busy("All connections are in use."))
        else:
            idle.close()

    def _pop_longest_idle(self, newcomer: Connection) -> Connection | None:
        """Return the connection idle for longest, from a sorted list that serves many newcomers."""
        while self._idle:
            last_activity, connection = self._idle.pop()
            if connection.last_activity == last_activity and connection.is_idle():
                return connection
        idle = [(each.last_activity, each) for each in self._connections if each is not newcomer and each.is_idle()]
        self._idle = sorted(idle, key=lambda item: item[0], reverse=True)
        return self._idle.pop()[1] if self._idle else None
