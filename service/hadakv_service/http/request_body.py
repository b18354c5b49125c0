"""Read request bodies into pooled buffers, and limit their size and their memory in flight."""

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

# A small body arrives in one read of the socket, so it needs no buffer.
SMALL_BODY_NBYTES = 64 * 1024
# Maximum size of all idle buffers together.
IDLE_NBYTES = 128 << 20


class ReceiveBufferPool:
    """Pool of receive buffers. Allocating fresh memory takes longer than copying a body into it.

    A request leases a buffer and gives it back if it succeeds. The device may still read the buffer of a cancelled
    request, so that one is left to the garbage collector.
    """

    def __init__(self) -> None:
        self._idle: list[memoryview] = []

    def lease(self, nbytes: int) -> memoryview:
        """Return a buffer of at least `nbytes`: the smallest idle one that fits, or a new one."""
        fitting = [i for i, buffer in enumerate(self._idle) if nbytes <= len(buffer) <= 4 * nbytes]
        if fitting:
            return self._idle.pop(min(fitting, key=lambda i: len(self._idle[i])))
        return np.empty(nbytes, np.uint8).data

    def give_back(self, buffer: memoryview) -> None:
        """Make a leased buffer idle. Drop the oldest idle buffers above `IDLE_NBYTES`."""
        self._idle.append(buffer)
        while sum(map(len, self._idle)) > IDLE_NBYTES:
            del self._idle[0]


class MemoryLimit:
    """Limit on the memory that bodies take while they are received and processed.

    Args:
        limit: maximum bytes of all bodies together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0

    @contextmanager
    def counter(self, *, may_exceed_alone: bool = False) -> Iterator[Callable[[int], None]]:
        """Yield a function that counts bytes as in use until the end of the block, or raises `Busy`.

        Args:
            may_exceed_alone: whether the block may use more than the limit while no other block uses any.
        """
        counted = 0

        def count(nbytes: int) -> None:
            nonlocal counted
            is_alone = may_exceed_alone and self._used == counted
            if self._used + nbytes > self._limit and not is_alone:
                raise Busy("Large request bodies use all the memory reserved for them. Retry later.")
            self._used += nbytes
            counted += nbytes

        try:
            yield count
        finally:
            self._used -= counted


class BodyReader:
    """Reader of request bodies with limits of size and memory.

    Args:
        limit: maximum size of a body, bytes.
        memory_limit: maximum bytes of all bodies that are being received or processed, without small ones. By default
            twice `limit`.

    Attributes:
        limit: maximum size of a body, bytes.
        import_memory: limit of the memory of imports, whose bodies are not limited otherwise. An import may be larger,
            so it does not count among the other bodies, which would all be rejected then.
    """

    def __init__(self, limit: int, memory_limit: int | None = None) -> None:
        self.limit = limit
        memory_limit = 2 * limit if memory_limit is None else memory_limit
        self.import_memory = MemoryLimit(memory_limit)
        self._memory = MemoryLimit(memory_limit)
        self._pool = ReceiveBufferPool()

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Buffer]:
        """Read the body of a request. It is valid inside the block only.

        Raises:
            BodyTooLarge: the body is larger than the limit; raised before reading if Content-Length says so.
            Busy: the body does not fit the memory limit together with other bodies; raised before reading if there is
                a Content-Length.
            MalformedBody: Content-Length is not a number.
            ClientDisconnect: the connection was lost before the body was complete.
        """
        declared = self._declared_length(request)
        if declared is not None and declared <= SMALL_BODY_NBYTES:
            yield await read_small(request.receive, self.limit)
            return
        with self._memory.counter() as count:
            if declared is None:
                yield await read_small(request.receive, self.limit, count)
                return
            # Count Content-Length before allocating. Otherwise headers alone would reserve memory.
            count(declared)
            buffer = self._pool.lease(declared)
            try:
                await _fill(request, buffer, declared)
            except CancelledError:
                note_body_incomplete()
                raise
            yield buffer[:declared]
            # Not in a `finally`: after an error a view of the buffer may still be in use.
            self._pool.give_back(buffer)

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
    """Read a body without a pooled buffer: one that is small, or has no Content-Length.

    Args:
        receive: the ASGI receive function of the request.
        limit: maximum size of the body, bytes.
        count: called with the size of each chunk before it is kept; may raise.

    Raises:
        BodyTooLarge: the body is larger than the limit.
        ClientDisconnect: the connection was lost before the body was complete.
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
