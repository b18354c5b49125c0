"""Blocking clients with one connection each, and as little code as possible around the socket."""

import re
import socket
from collections.abc import Iterator
from itertools import count, repeat
from typing import Protocol
from urllib.parse import urlsplit

from benchmarks.http.payloads import Workload, answer_nbytes
from hadakv_client import Client

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Caller(Protocol):
    """Client that sends an append and waits for the response."""

    def call(self) -> None:
        """Send an append.

        Raises:
            AssertionError: the response is no success.
        """
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def session_names(prefix: str, *, fresh: bool) -> Iterator[str]:
    """Return the names of sessions: always the same, or a new one for each append."""
    return (f"{prefix}-{i}" for i in count()) if fresh else repeat(prefix)


def connect(url: str) -> socket.socket:
    """Open a TCP connection without Nagle's algorithm."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class _OverSocket:
    def __init__(self, url: str, workload: Workload) -> None:
        self._socket = connect(url)
        self._body = workload.body
        self._answer = memoryview(bytearray(2 * answer_nbytes(len(workload.body)) + 4096))

    def close(self) -> None:
        self._socket.close()

    def _receive(self, filled: int, nbytes: int) -> None:
        while filled < nbytes:
            received = self._socket.recv_into(self._answer[filled:])
            assert received, "the server closed the connection"
            filled += received


class RawCaller(_OverSocket):
    """Raw socket: the bytes of the body out, the bytes of the response in."""

    def call(self) -> None:
        """Move the bytes."""
        self._socket.sendall(self._body)
        self._receive(0, answer_nbytes(len(self._body)))


class HttpCaller(_OverSocket):
    """HTTP/1.1 over one keep-alive connection."""

    def __init__(self, url: str, workload: Workload, *, fresh: bool = False) -> None:
        super().__init__(url, workload)
        self._workload = workload
        self._sessions = session_names(workload.name, fresh=fresh)

    def call(self) -> None:
        """Send an append."""
        head = self._workload.request(next(self._sessions))
        if len(self._body) < 1 << 20:
            self._socket.sendall(head + self._body)
        else:
            self._socket.sendall(head)
            self._socket.sendall(self._body)
        self._receive_answer()

    def _receive_answer(self) -> None:
        filled, end = 0, -1
        while end < 0:
            received = self._socket.recv_into(self._answer[filled:])
            assert received, "the server closed the connection"
            filled += received
            end = bytes(self._answer[: min(filled, 2048)]).find(b"\r\n\r\n")
        head = bytes(self._answer[:end])
        length = _LENGTH.search(head)
        assert head.startswith(b"HTTP/1.1 20"), head
        assert length, head
        self._receive(filled, end + 4 + int(length[1]))


class RedisCaller(_OverSocket):
    """Redis client: SET of the raw float16 bytes."""

    def __init__(self, url: str, workload: Workload) -> None:
        super().__init__(url, workload)
        self._request = redis_set(workload.name, workload.raw)

    def call(self) -> None:
        """Send a SET."""
        self._socket.sendall(self._request)
        self._receive(0, 5)
        assert self._answer[:5] == b"+OK\r\n", bytes(self._answer[:100])


def redis_set(key: str, value: bytes) -> bytes:
    """Return a SET command in Redis's protocol."""
    return b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key.encode(), len(value), value)


class ClientCaller:
    """This project's client: NumPy arrays in, NumPy arrays out."""

    def __init__(self, url: str, workload: Workload, *, fresh: bool = False) -> None:
        self._client = Client(url)
        self._tensors = workload.tensors
        names = session_names(f"{workload.name}-client", fresh=fresh)
        self._sessions = map(self._client.session, names) if fresh else repeat(self._client.session(next(names)))
        self._position = 0 if fresh else None

    def call(self) -> None:
        """Send an append."""
        k, v = self._tensors
        answer = next(self._sessions).append(k, v, position=self._position)
        assert answer.tokens == k.shape[2]

    def close(self) -> None:
        """Close the client."""
        self._client.close()
