"""Adapter for uvicorn's internals: the only module that uses private state of uvicorn's HTTP protocol.

`HttpProtocol` overrides public callbacks and calls this module for everything else. So a new version of uvicorn can
break this module only. tests/unit/server/test_uvicorn_contract.py lists the attributes that are used here. It fails
with the name of an attribute that uvicorn no longer has.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from enum import Enum, auto
from typing import cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

# A request and its response. uvicorn creates one when the headers are complete.
Cycle = RequestResponseCycle
Header = tuple[bytes, bytes]


class PeerState(Enum):
    """State of a connection, as seen from the peer."""

    IDLE = auto()
    AWAITING_RESPONSE = auto()
    SENDING_HEAD = auto()
    SENDING_BODY = auto()


class UvicornAdapter:
    """Named operations on the private state of one connection.

    Args:
        connection: the connection.
    """

    def __init__(self, connection: HttpToolsProtocol) -> None:
        self._connection = connection
        # Requests with a possibly incomplete response, in order of arrival.
        self._cycles: deque[Cycle] = deque()
        # The scope of the last request that was received completely.
        self._received: object = None

    def detach(self) -> None:
        """Drop the reference to a lost connection, so that its memory is freed without garbage collection."""
        del self._connection

    # Requests

    def add_request(self) -> Cycle:
        """Return the request whose headers uvicorn has just parsed. From now on it is an open request."""
        connection = self._connection
        while self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()
        self._cycles.append(connection.cycle)
        # The parser reports trailers as headers. Do not append them to the headers that were checked.
        connection.headers = []
        return connection.cycle

    def open_requests(self) -> list[Cycle]:
        """Return the requests whose responses are incomplete, in order of arrival."""
        return [cycle for cycle in self._cycles if not cycle.response_complete]

    def pipelined(self) -> int:
        """Return the number of requests that wait for the response to an earlier one."""
        return len(self._connection.pipeline)

    def can_reject(self) -> bool:
        """Whether an error would be sent in order: it belongs to the first request without a complete response."""
        cycles = self.open_requests()
        if self.peer_state() is PeerState.SENDING_BODY:
            return cycles == [self._connection.cycle] and not cycles[0].response_started
        return not cycles

    def take_over(self) -> Scope | None:
        """Drop what the application still sends for the current request. Return its scope, None if there is none."""
        cycle = self._connection.cycle
        if cycle is None or cycle.response_complete:
            return None
        self.mark_disconnected(cycle)
        self.finish_response(cycle)
        return cast(Scope, cycle.scope)

    def start_next_request(self) -> None:
        """Read on after a response, and run the next pipelined request. Start no keep-alive timer, unlike uvicorn."""
        connection = self._connection
        connection.server_state.total_requests += 1
        if connection.transport.is_closing():
            return
        connection.flow.resume_reading()
        if connection.pipeline:
            connection._start_asgi_task(*connection.pipeline.pop())

    # State

    def has_whole_request(self) -> bool:
        """Whether the last request that began was received completely."""
        return self._received is self._connection.scope

    def peer_state(self) -> PeerState:
        """Return what the peer is doing."""
        connection = self._connection
        cycle = connection.cycle
        if self.has_whole_request():
            is_idle = cycle is None or (cycle.response_complete and not connection.pipeline)
            return PeerState.IDLE if is_idle else PeerState.AWAITING_RESPONSE
        # uvicorn creates the scope at a request's first byte, and the cycle once the headers are complete.
        if cycle is None or cycle.scope is not connection.scope:
            return PeerState.SENDING_HEAD
        return PeerState.SENDING_BODY

    def is_disconnected(self, cycle: Cycle) -> bool:
        """Whether the client disconnected before the response was complete."""
        # After a failed write the transport is closing at once. uvicorn marks the cycle in a later loop iteration, and
        # reports a response that ends before that as an error of the application.
        if not cycle.response_complete and not cycle.disconnected and cycle.transport.is_closing():
            self.mark_disconnected(cycle)
        return not cycle.response_complete and cycle.disconnected

    def is_blocked(self) -> bool:
        """Whether the peer cannot send: reading is paused, or earlier requests are still open."""
        current = self._connection.cycle if self.peer_state() is PeerState.SENDING_BODY else None
        return self._connection.flow.read_paused or any(cycle is not current for cycle in self.open_requests())

    def unwritten_response(self) -> tuple[Cycle | None, int]:
        """Return the request whose response is being written, and the bytes of it that are not yet written."""
        for cycle in self.open_requests():
            if cycle.response_started:
                return cycle, cycle.expected_content_length
        return None, 0

    def head_nbytes(self) -> int:
        """Return the size of the request line and of the headers that were parsed so far."""
        lines = sum(len(name) + len(value) + len(": \r\n") for name, value in self._connection.headers)
        return len("GET  HTTP/1.1\r\n\r\n") + len(self._connection.url) + lines

    # Parser

    def offers_upgrade(self) -> bool:
        """Whether the head just parsed offers another protocol. The parser reports its callbacks, then stops.

        Raises:
            HttpParserError: the method is CONNECT, which is not an offer but a demand.
        """
        parser = self._connection.parser
        if not parser.should_upgrade():
            return False
        if parser.get_method() == b"CONNECT":
            raise httptools.HttpParserError("CONNECT is not supported")
        return True

    def parse(self, data: bytes) -> None:
        """Parse received bytes, and ignore offers to change to another protocol.

        A server may ignore an Upgrade header, for example h2c or WebSocket (RFC 9110, 7.8). The parser stops after such
        a head, so restart it with the same head without the offer.

        Raises:
            HttpParserError: the bytes are not HTTP, or a callback rejected the request.
        """
        try:
            self._connection.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            head_end, rest = upgrade.args[0], memoryview(data)
            while head_end is not None:
                rest = rest[head_end:]
                head = self._head_without_upgrade()
                self.restart_parser()
                self._feed(head)
                head_end = self._feed(rest)

    def _feed(self, data: bytes | memoryview) -> int | None:
        """Feed the parser. Return the end of a head with an Upgrade header, where the parser stops; None otherwise."""
        try:
            self._connection.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return int(upgrade.args[0])
        return None

    def _head_without_upgrade(self) -> bytes:
        """Return the head that was just parsed. Values contain no line breaks, because the parser rejects them."""
        connection = self._connection
        version = connection.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (connection.parser.get_method(), connection.url, version)]
        lines += [b"%b: %b" % header for header in connection.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def restart_parser(self) -> None:
        """Replace the parser, so that the next byte begins a request."""
        self._connection.parser = httptools.HttpRequestParser(self._connection)
        # uvicorn sets the same: bytes after a request with `Connection: close` are no error.
        self._connection.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    # Bodies

    def finish_receiving(self) -> None:
        """Note that the current request was received completely."""
        self._received = self._connection.scope

    def take_body(self, cycle: Cycle, buffer: memoryview) -> tuple[int, bool]:
        """Move the received part of a body to a buffer. Ask for the body if the client waits for "100 Continue".

        Returns:
            Number of bytes moved, and whether the body was received completely.
        """
        if cycle.waiting_for_100_continue and not cycle.transport.is_closing():
            cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        nbytes = len(cycle.body)
        buffer[:nbytes] = cycle.body
        cycle.body = bytearray()
        return nbytes, not cycle.more_body

    def receive_with(self, receiver: asyncio.BaseProtocol) -> None:
        """Let another protocol receive data, and continue reading if that was paused."""
        self._connection.transport.set_protocol(receiver)
        self._connection.flow.resume_reading()

    def finish_body(self) -> None:
        """End the current request's body, which did not pass through the parser, and receive the next request."""
        self.restart_parser()
        self.finish_receiving()
        self._connection.cycle.more_body = False
        self._connection.cycle.message_event.set()
        self._connection.transport.set_protocol(self._connection)

    # Responses

    async def send_response(self, cycle: Cycle, status: int, headers: Sequence[Header], body: bytes) -> bool:
        """Send a complete response, not to a HEAD request. Return False if the client has disconnected."""
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected or cycle.transport.is_closing():
            # Otherwise uvicorn logs that the application sent no response.
            cycle.disconnected = True
            return False
        self.finish_response(cycle)
        self.write_response(status, headers, body, keep_alive=cycle.keep_alive)
        cycle.on_response()
        return True

    def write_response(self, status: int, headers: Sequence[Header], body: bytes, *, keep_alive: bool) -> None:
        """Write a complete response with one call, and close the connection unless it is kept alive."""
        lines = [b"%b: %b\r\n" % header for header in (*self._connection.server_state.default_headers, *headers)]
        if not keep_alive:
            lines.append(b"connection: close\r\n")
        self._connection.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        if not keep_alive:
            self._connection.transport.close()

    def finish_response(self, cycle: Cycle) -> None:
        """Mark a response as complete."""
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()

    def mark_disconnected(self, cycle: Cycle) -> None:
        """Let the application know that the client is gone. Its further messages are dropped."""
        cycle.disconnected = True
        cycle.message_event.set()
