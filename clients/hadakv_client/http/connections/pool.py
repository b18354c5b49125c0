"""Pool of idle connections, for both clients."""

import os
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from socket import socket
from typing import Generic, TypeVar

import httpcore

from hadakv_client.http.connections import forks

KEEPALIVE_SECONDS = 5.0
MAX_IDLE = 20
Http = TypeVar("Http", httpcore.HTTP11Connection, httpcore.AsyncHTTP11Connection)


class Connection(Generic[Http]):
    """Connection to the service.

    Args:
        http: protocol state.
        connected: socket of this connection.
        close: closes the socket. It never waits, so that nothing can interrupt or cancel it.

    Attributes:
        http: see the argument.
        socket: socket of this connection.
        close: see the argument.
    """

    __slots__ = ("__weakref__", "close", "http", "socket")

    def __init__(self, http: Http, connected: socket, close: Callable[[], None]) -> None:
        self.http: Http = http
        self.socket = connected
        self.close = close

    @property
    def is_usable(self) -> bool:
        """Return whether the next request can use this connection."""
        return self.http.is_idle() and not self.http.has_expired()


class Pool(Generic[Http]):
    """Idle connections. A request takes one out and owns it, so that no failure of a request can damage the pool.

    The pool does not count the connections in use. A connection that its request loses is freed with the request.
    It has no lock, so that a fork cannot copy a locked one: operations on a deque are atomic.
    """

    def __init__(self) -> None:
        self._idle: deque[Connection[Http]] = deque()
        self._open: weakref.WeakSet[Connection[Http]] = weakref.WeakSet()
        self._is_closed = False
        forks.register(self)

    def add(self, connection: Connection[Http]) -> None:
        """Register a new connection, which its request owns."""
        self._open.add(connection)

    def take(self) -> Connection[Http] | None:
        """Remove the connection that was used last, and return it; None if there is none."""
        forks.check_process()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_usable:
                return connection
            connection.close()

    def give_back(self, connection: Connection[Http]) -> None:
        """Keep a connection for later requests if its response is complete. Close it otherwise."""
        if self._is_closed or not connection.http.is_idle():
            connection.close()
            return
        self._idle.append(connection)
        self._close_oldest()
        if self._is_closed:
            self.close()

    def _close_oldest(self) -> None:
        """Close the connection that was idle longest if it has expired, and the oldest ones while there are too many.

        The limit comes last. Other threads may add connections meanwhile, and the last of them sees all.
        """
        with suppress(IndexError):
            oldest = self._idle.popleft()
            if oldest.is_usable:
                self._idle.appendleft(oldest)
            else:
                oldest.close()
            while len(self._idle) > MAX_IDLE:
                self._idle.popleft().close()

    def close(self) -> None:
        """Close the idle connections now, and those in use when their requests end."""
        self._is_closed = True
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            connection.close()

    def reset_after_fork(self) -> None:
        """Give up the parent's connections.

        Only close the file descriptors. Anything more, for example a TLS alert, would end the parent's connection.
        """
        inherited = list(self._open)
        self._idle, self._open = deque(), weakref.WeakSet()
        for connection in inherited:
            descriptor = connection.socket.detach()
            if descriptor >= 0:
                os.close(descriptor)
