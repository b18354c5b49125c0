"""Closed-loop load generator: each connection sends its next request when it has received the response.

Requests are encoded in advance, and only the length of responses is parsed, to keep the generator fast.
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import cast
from urllib.parse import urlsplit

import uvloop

# Returns the length of a response by its first bytes; 0 if more bytes are needed.
Length = Callable[[bytes], int]

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def http_length(beginning: bytes) -> int:
    """Return the length of a successful HTTP response."""
    end = beginning.find(b"\r\n\r\n")
    if end < 0:
        return 0
    length = _LENGTH.search(beginning, 0, end)
    assert beginning.startswith(b"HTTP/1.1 20"), beginning[:500]
    assert length, beginning[:500]
    return end + 4 + int(length[1])


def redis_length(beginning: bytes) -> int:
    """Return the length of the response to a successful SET."""
    assert beginning.startswith(b"+OK"), beginning[:100]
    return 5


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, length: Length, stop: "asyncio.Event") -> None:
        self._request = request
        self._length = length
        self._stop = stop
        self._received = b""
        self._missing = 0
        self.answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        transport.write(self._request)

    def data_received(self, chunk: bytes) -> None:
        if not self._missing:
            self._received += chunk
            total = self._length(self._received)
            if not total:
                return
            self._missing = total - len(self._received)
        else:
            self._missing -= len(chunk)
        if not self._missing:
            self._received = b""
            self.answers += 1
            if not self._stop.is_set():
                self._transport.write(self._request)

    def connection_lost(self, error: Exception | None) -> None:
        assert self._stop.is_set(), f"the server closed the connection: {error}"


def requests_per_second(url: str, requests: Sequence[bytes], length: Length, seconds: float) -> float:
    """Return responses per second. Each request gets a connection that sends it repeatedly."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_generate(url, requests, length, seconds))


async def _generate(url: str, requests: Sequence[bytes], length: Length, seconds: float) -> float:
    loop, stop, address = asyncio.get_running_loop(), asyncio.Event(), urlsplit(url)
    failures: list[object] = []
    loop.set_exception_handler(lambda _, context: failures.append(context.get("exception")))
    connections = [
        await loop.create_connection(lambda r=request: _Connection(r, length, stop), address.hostname, address.port)
        for request in requests
    ]
    await asyncio.sleep(seconds / 5)
    before, start = sum(c.answers for _, c in connections), time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (sum(c.answers for _, c in connections) - before) / (time.perf_counter() - start)
    stop.set()
    for transport, _ in connections:
        transport.close()
    await asyncio.sleep(0)
    if failures:
        raise RuntimeError(f"the load failed: {failures[0]}")
    return rate
