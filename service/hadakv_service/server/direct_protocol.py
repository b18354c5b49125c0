"""The connection: uvicorn's, where large bodies go straight into the app's buffer, offers are passed over, ends seen.

uvicorn hands a body on in chunks, each copied four times on its way. Under this protocol the scope's ASGI extension
`hadakv.receive_into` takes a buffer instead, and until that is full the kernel writes there directly. An app that
does not know the extension, or a server that does not have it, works as ever.
"""

import asyncio
from collections import deque
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from hadakv_service.asgi_extensions import CLIENT_DISCONNECTED, RECEIVE_INTO

# As much as is read before other connections have their turn.
READ_CHUNK_NBYTES = 1 << 20
_UNREADABLE = "Invalid HTTP request received."


class DirectProtocol(HttpToolsProtocol):
    """uvicorn's connection, with the extension.

    A request that offers to change to another protocol, h2c or WebSocket, is a request like any other: a server may
    pass over such an offer (RFC 9110, 7.8). The parser by itself would take all that follows the head for the other
    protocol, so it is given the head once more without the offer.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Requests that may still be under way, in the order they came.
        self._cycles: deque[RequestResponseCycle] = deque()
        # The scope of the last request that has come whole.
        self._whole: Any = None

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        try:
            while (offer := self._parse(rest)) is not None:
                rest = rest[offer:]
                head = self._head_without_offer()
                self._renew_parser()
                self._parse(head)
        except httptools.HttpParserError:
            self.logger.info("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

    def _parse(self, data: bytes | memoryview) -> int | None:
        """Feed the parser, up to the end of a head that offers another protocol; where that is, if there is one."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            return int(offer.args[0])
        return None

    def _head_without_offer(self) -> bytes:
        """The head just parsed. Values have no line ends, or the parser would have refused them."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn's own: what follows a request that closes the connection is no error.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header, without the spaces that may follow a value: the parser leaves them."""
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Offer the extension to the app, whose task begins only after this."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("there is nothing to connect to")
            return
        super().on_headers_complete()
        calls: dict[str, Any] = {
            RECEIVE_INTO: partial(self._receive_into, self.cycle),
            CLIENT_DISCONNECTED: partial(_is_gone, self.cycle),
        }
        self.scope["extensions"] = calls
        while self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()
        self._cycles.append(self.cycle)

    def on_message_complete(self) -> None:
        """Note the end of a request, but not of one that is parsed once more."""
        if not self.parser.should_upgrade():
            self._whole = self.scope
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let every request under way know that nobody waits for its answer; uvicorn tells only the last one."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

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
        self.transport.set_protocol(DirectBodyReceiver(self, buffer[filled:], whole))
        self.flow.resume_reading()
        return await whole

    def count_body(self, nbytes: int) -> None:
        """Note that so much of a body came past the parser."""

    def end_body(self) -> None:
        """Go on with the next request, as if the parser had seen the whole body of this one."""
        self._renew_parser()
        self._whole = self.scope
        self.cycle.more_body = False
        self.cycle.message_event.set()
        self.transport.set_protocol(self)


def _is_gone(cycle: RequestResponseCycle) -> bool:
    # A transport that could not write is closing at once, and the cycle told only when it is the loop's turn.
    return not cycle.response_complete and (cycle.disconnected or cycle.transport.is_closing())


class DirectBodyReceiver(asyncio.BufferedProtocol):
    """What a connection is while a buffer is filled."""

    def __init__(self, connection: DirectProtocol, rest: memoryview, whole: "asyncio.Future[bool]") -> None:
        self._connection = connection
        self._rest = rest
        self._whole = whole

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Return the part of the body buffer to receive into next."""
        return self._rest[:READ_CHUNK_NBYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Count received bytes; return to the HTTP protocol when the body is complete."""
        self._connection.count_body(nbytes)
        self._rest = self._rest[nbytes:]
        if not self._rest:
            self._connection.end_body()
            self._end(whole=True)
        elif nbytes == READ_CHUNK_NBYTES:
            # libuv reads on as long as it can fill what it is given; others are to have their turn.
            self._connection.transport.pause_reading()
            self._connection.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._rest and not self._connection.transport.is_closing():
            self._connection.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the lost connection to the HTTP protocol."""
        self._connection.connection_lost(exc)
        self._end(whole=False)

    def pause_writing(self) -> None:
        """Forward to the HTTP protocol."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Forward to the HTTP protocol."""
        self._connection.resume_writing()

    def _end(self, *, whole: bool) -> None:
        self._rest = memoryview(b"")
        if not self._whole.done():
            self._whole.set_result(whole)
