"""Receiving a request's body: into one leased buffer, checked against the limit before anything is allocated."""

from asyncio import CancelledError
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from hadakv_service.asgi_extensions import receive_into
from hadakv_service.errors import BodyTooLarge, Busy, MalformedBody
from hadakv_service.observability.request_record import note_body_incomplete, note_received
from hadakv_service.wire.serialization import Buffer

# Bodies that fit one read of the socket arrive whole and need no buffer.
SMALL_BODY_NBYTES = 64 * 1024
# What idle buffers may hold on to together.
IDLE_NBYTES = 128 << 20


class ReceiveBufferPool:
    """Receive buffers, reused because fresh memory costs more than the copy into it.

    A buffer is leased to one request and comes back only when that request ended in order; a cancelled request's
    buffer may still be read by the device, so it is left to the garbage collector.
    """

    def __init__(self) -> None:
        self._idle: list[memoryview] = []

    def lease(self, nbytes: int) -> memoryview:
        """A buffer of at least that many bytes, the smallest idle one that fits."""
        fitting = [i for i, buffer in enumerate(self._idle) if nbytes <= len(buffer) <= 4 * nbytes]
        if fitting:
            return self._idle.pop(min(fitting, key=lambda i: len(self._idle[i])))
        return np.empty(nbytes, np.uint8).data

    def give_back(self, buffer: memoryview) -> None:
        """Make a leased buffer available to the next request; what is too much is let go, oldest first."""
        self._idle.append(buffer)
        while sum(map(len, self._idle)) > IDLE_NBYTES:
            del self._idle[0]


class BodyReader:
    """Reads bodies up to a limit.

    Args:
        limit: the largest body in bytes.
        receiving: bytes that all bodies may take together while they are received and worked on, but for small ones;
            by default two of the largest.
    """

    def __init__(self, limit: int, receiving: int | None = None) -> None:
        self.limit = limit
        self._memory_limit = 2 * limit if receiving is None else receiving
        self._memory_used = 0
        self._pool = ReceiveBufferPool()

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Buffer]:
        """The request's body, valid inside the block only.

        Raises:
            BodyTooLarge: before reading, when Content-Length tells.
            Busy: likewise, when there is no room beside other bodies.
            MalformedBody: Content-Length is not a number.
            ClientDisconnect: the connection broke before the body was whole.
        """
        declared = self._declared_length(request)
        if declared is not None and declared <= SMALL_BODY_NBYTES:
            yield await read_small(request.receive, self.limit)
            return
        with self._counted() as count:
            if declared is None:
                yield await read_small(request.receive, self.limit, count)
                return
            # A claim costs its sender nothing: it counts before there is memory for it.
            count(declared)
            buffer = self._pool.lease(declared)
            try:
                await _fill(request, buffer, declared)
            except CancelledError:
                note_body_incomplete()
                raise
            yield buffer[:declared]
            # Not in a finally: after an error a view of the buffer may still be in use.
            self._pool.give_back(buffer)

    @contextmanager
    def _counted(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that counts a body's bytes in; at the end of the block they are counted out."""
        counted = 0

        def count(nbytes: int) -> None:
            nonlocal counted
            if self._memory_used + nbytes > self._memory_limit:
                raise Busy("Too many large bodies are on their way in.")
            self._memory_used += nbytes
            counted += nbytes

        try:
            yield count
        finally:
            self._memory_used -= counted

    def _declared_length(self, request: Request) -> int | None:
        header = request.headers.get("content-length")
        if header is None:
            return None
        if not header.isdecimal():
            raise MalformedBody("Content-Length is not a number.")
        if int(header) > self.limit:
            raise BodyTooLarge(self.limit)
        return int(header)


async def read_small(receive: Receive, limit: int, count: Callable[[int], None] | None = None) -> Buffer:
    """A body that needs no buffer, or whose length is not known.

    Args:
        receive: of the request.
        limit: the largest body in bytes.
        count: is told the size of each part before it is kept, and may refuse it.

    Raises:
        BodyTooLarge: it is larger than the limit.
        ClientDisconnect: the connection broke before the body was whole.
    """
    chunks, total, more = [], 0, True
    while more:
        try:
            message = await receive()
        except CancelledError:
            note_body_incomplete()
            raise
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        total += len(chunk)
        note_received(len(chunk))
        if total > limit:
            raise BodyTooLarge(limit)
        if count is not None:
            count(len(chunk))
        if chunk:
            chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _fill(request: Request, buffer: memoryview, declared: int) -> None:
    if not await receive_into(request.scope, request.receive, buffer[:declared]):
        raise ClientDisconnect
    note_received(declared)
