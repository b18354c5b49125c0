"""Receives large bodies straight into the app's buffer, as an ASGI extension.

uvicorn hands a body on in chunks, each copied four times on its way. Under this protocol the scope's extension
`hadakv.receive_into` takes a buffer instead, and until that is full the kernel writes there directly. An app that
does not know the extension, or a server that does not have it, works as ever.
"""

import asyncio
from functools import partial

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from hadakv_service.body import EXTENSION

# As much as is read before other connections have their turn.
STRIDE = 1 << 20


class DirectProtocol(HttpToolsProtocol):
    """uvicorn's connection, with the extension."""

    def on_headers_complete(self) -> None:
        """Offer the extension to the app, whose task begins only after this."""
        super().on_headers_complete()
        self.scope["extensions"] = {EXTENSION: partial(self._receive_into, self.cycle)}  # type: ignore[dict-item]  # a call, not settings

    async def _receive_into(self, cycle: RequestResponseCycle, buffer: memoryview) -> bool:
        """Fill a buffer with a request's whole body, which has just that many bytes; False if it breaks off."""
        if cycle.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        filled = len(cycle.body)
        buffer[:filled] = cycle.body
        cycle.body = type(cycle.body)()
        if not cycle.more_body:
            return filled == len(buffer)
        if cycle.disconnected or self.transport.is_closing():
            return False
        whole: asyncio.Future[bool] = self.loop.create_future()
        self.transport.set_protocol(_Filling(self, buffer[filled:], whole))
        self.flow.resume_reading()
        return await whole

    def end_body(self) -> None:
        """Go on with the next request, as if the parser had seen the whole body of this one."""
        self.parser = httptools.HttpRequestParser(self)
        self.cycle.more_body = False
        self.cycle.message_event.set()
        self.transport.set_protocol(self)


class _Filling(asyncio.BufferedProtocol):
    """What a connection is while a buffer is filled."""

    def __init__(self, connection: DirectProtocol, rest: memoryview, whole: "asyncio.Future[bool]") -> None:
        self._connection = connection
        self._rest = rest
        self._whole = whole

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self._rest[:STRIDE]

    def buffer_updated(self, nbytes: int) -> None:
        self._rest = self._rest[nbytes:]
        if not self._rest:
            self._connection.end_body()
            self._end(whole=True)
        elif nbytes == STRIDE:
            # libuv reads on as long as it can fill what it is given; others are to have their turn.
            self._connection.transport.pause_reading()
            self._connection.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._rest and not self._connection.transport.is_closing():
            self._connection.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)
        self._end(whole=False)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def _end(self, *, whole: bool) -> None:
        self._rest = memoryview(b"")
        if not self._whole.done():
            self._whole.set_result(whole)
