"""HTTP protocol of a connection: uvicorn's, with limits and with the ASGI extensions of `asgi_extensions`.

Limits: slow peers get 408, large request heads 431, and too many pipelined requests 503. The connection monitor checks
each connection once a second. So a request costs no timer, only a few counters.

Extensions: a large body is received straight into the application's buffer. A complete response goes out in one write,
which saves a system call and often a packet. The application can ask whether the client is still connected.
"""

import asyncio
from functools import partial
from time import perf_counter
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hadakv_service.asgi_extensions import CLIENT_DISCONNECTED, RECEIVE_INTO, SEND_RESPONSE, record_rejected
from hadakv_service.errors import (
    Busy,
    HeadersTooLarge,
    MalformedRequest,
    RequestTimeout,
    ServiceError,
    UnsupportedTransferEncoding,
)
from hadakv_service.observability.request_record import HEADER
from hadakv_service.problem_details import problem_response
from hadakv_service.server.connection_monitor import ConnectionMonitor
from hadakv_service.server.direct_receive import DirectBodyReceiver
from hadakv_service.server.timeouts import ConnectionTimeouts
from hadakv_service.server.uvicorn_adapter import Cycle, PeerState, UvicornAdapter

# Maximum number of requests that a peer may send before it gets the responses to earlier ones.
MAX_PIPELINED = 100
_TRANSFER_ENCODING = b"transfer-encoding"


class HttpProtocol(HttpToolsProtocol):
    """HTTP connection that times out slow peers, rejects large heads, and can be closed to make room for another.

    Attributes:
        last_activity: when data arrived last, by `perf_counter`. The event loop's clock has millisecond resolution,
            so it cannot order the connections of one millisecond.
    """

    def __init__(self, *args: Any, monitor: ConnectionMonitor, **options: Any) -> None:
        super().__init__(*args, **options)
        self._uvicorn = UvicornAdapter(self)
        self._monitor = monitor
        self._limits = monitor.limits
        self._timeouts = ConnectionTimeouts(monitor.limits)
        # Why a callback stopped the parser.
        self._rejection: ServiceError | None = None
        self._received_nbytes = 0  # by the last read
        # Whether the last read ended a request, or had some of a body.
        self._has_ended_request = self._has_read_body = False
        self._body_nbytes = 0
        # Bounds of the size of an incomplete head. A head may begin in the same read that ends an earlier request.
        self._min_head_nbytes = self._max_head_nbytes = 0
        # Whether the head just parsed offers another protocol. It will be parsed again without that offer.
        self._offers_upgrade = False
        # Size of incomplete trailers; None outside of trailers.
        self._trailers_nbytes: int | None = None
        self.last_activity = 0.0

    # Transport events

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's signature
        """Register the connection, which may close another one or this one."""
        super().connection_made(transport)
        self.last_activity = perf_counter()
        self._monitor.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application about each open request. uvicorn does this for the last one only."""
        for cycle in self._uvicorn.open_requests():
            self._uvicorn.mark_disconnected(cycle)
        super().connection_lost(exc)
        self._uvicorn.detach()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, and limit the size of heads and trailers."""
        self.last_activity = perf_counter()
        self._received_nbytes = len(data)
        self._has_ended_request = self._has_read_body = False
        try:
            self._uvicorn.parse(data)
        except httptools.HttpParserError:
            self.reject(self._rejection or MalformedRequest("Invalid HTTP request received."))
        if not self._uvicorn.has_whole_request():
            self._limit_head_and_trailers(data)

    def _limit_head_and_trailers(self, data: bytes) -> None:
        """Count received bytes of an incomplete head or of incomplete trailers, and reject what exceeds the limit."""
        state = self._uvicorn.peer_state()
        if state is PeerState.SENDING_HEAD:
            self._min_head_nbytes += len(data) if self._min_head_nbytes else self._begun_head_nbytes(data)
            self._max_head_nbytes += len(data)
            self._reject_if_larger(self._min_head_nbytes)
        elif state is PeerState.SENDING_BODY and self._trailers_nbytes is not None:
            self._trailers_nbytes += len(data)
            self._reject_if_larger(self._trailers_nbytes)

    def _begun_head_nbytes(self, data: bytes) -> int:
        """Return at least how many of the bytes just read belong to the incomplete head that began in them."""
        if not self._has_ended_request:
            return len(data)
        # Earlier requests in the same read have no body here, so each ended with an empty line.
        line_end = -1 if self._has_read_body else data.rfind(b"\r\n\r\n")
        return self._uvicorn.head_nbytes() if line_end < 0 else len(data) - line_end - 4

    def _reject_if_larger(self, nbytes: int) -> None:
        if nbytes > self._limits.max_header_nbytes:
            self.reject(HeadersTooLarge(self._limits.max_header_nbytes))

    # Parser callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Strip spaces after the value, because the parser keeps them.

        The parser ignores codings before the last one, chunked. The application would take the coded body for plain.
        """
        value = value.rstrip(b" \t")
        if len(name) == len(_TRANSFER_ENCODING) and name.lower() == _TRANSFER_ENCODING and value.lower() != b"chunked":
            shown = value[:80].decode("latin-1")
            self._stop_parsing(UnsupportedTransferEncoding(f"Transfer-Encoding must be chunked, not {shown!r}."))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the limits, then start the request and offer the extensions. The application's task starts later."""
        limit = self._limits.max_header_nbytes
        # Measuring takes time. Do it only if enough bytes arrived to exceed the limit.
        if self._max_head_nbytes + self._received_nbytes > limit and self._uvicorn.head_nbytes() > limit:
            self._stop_parsing(HeadersTooLarge(limit))
        if self._uvicorn.pipelined() > MAX_PIPELINED:
            self._stop_parsing(Busy("Too many pipelined requests."))
        self._min_head_nbytes = self._max_head_nbytes = 0
        self._offers_upgrade = self._uvicorn.offers_upgrade()
        if self._offers_upgrade:
            return
        super().on_headers_complete()
        cycle = self._uvicorn.add_request()
        extensions: dict[str, Any] = {
            RECEIVE_INTO: partial(self._receive_into, cycle),
            SEND_RESPONSE: partial(self._uvicorn.send_response, cycle),
            CLIENT_DISCONNECTED: partial(self._uvicorn.is_disconnected, cycle),
        }
        self.scope["extensions"] = extensions

    def _stop_parsing(self, rejection: ServiceError) -> None:
        self._rejection = rejection
        raise httptools.HttpParserError(rejection.detail)

    def on_chunk_header(self) -> None:
        """Start to count trailers, which the parser buffers: they follow the last chunk's header."""
        # The rest of the last read may belong to the body, so it does not count.
        self._trailers_nbytes = -self._received_nbytes

    def on_body(self, body: bytes) -> None:
        """Count body bytes. They are not trailers."""
        self._trailers_nbytes = None
        self._has_read_body = True
        self._body_nbytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request, but not of one that will be parsed again without its Upgrade header."""
        self._has_ended_request = True
        if not self._offers_upgrade:
            self._uvicorn.finish_receiving()
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Continue with the next request. The connection monitor closes idle connections."""
        self._uvicorn.start_next_request()

    # ASGI extensions

    async def _receive_into(self, cycle: Cycle, buffer: memoryview) -> bool:
        """Fill a buffer that is as long as the request's body. Return False if the connection is lost first."""
        filled, is_complete = self._uvicorn.take_body(cycle, buffer)
        if is_complete:
            return filled == len(buffer)
        if self._uvicorn.is_disconnected(cycle):
            return False
        receiver = DirectBodyReceiver(self, buffer[filled:])
        self._uvicorn.receive_with(receiver)
        return await receiver.is_filled

    def on_direct_data(self, nbytes: int) -> None:
        """Count body bytes that did not pass through the parser."""
        self._body_nbytes += nbytes

    def on_direct_body_complete(self) -> None:
        """Receive the next request, as if the parser had seen the whole body of this one."""
        self._uvicorn.finish_body()

    # Rejections

    def reject(self, error: ServiceError) -> None:
        """Close the connection. Send a problem first, unless responses to earlier requests are still due."""
        if not self.transport.is_closing() and self._uvicorn.can_reject():
            request_id = self._record_rejection(error)
            response = problem_response(error)
            headers = [*response.raw_headers, *([(HEADER, request_id)] if request_id else [])]
            self._uvicorn.write_response(error.status, headers, bytes(response.body), keep_alive=False)
        for cycle in self._uvicorn.open_requests():
            self._uvicorn.mark_disconnected(cycle)
        self.transport.close()

    def _record_rejection(self, error: ServiceError) -> bytes:
        """Let the application count and log the rejected request. Return the request's id."""
        scope = self._uvicorn.take_over()
        request_id = record_rejected(self.app_state, self.client, scope, error.status, error.slug)
        if request_id:
            error.fields = {**error.fields, "request_id": request_id.decode()}
        return request_id

    def open_requests(self) -> int:
        """Return the number of requests whose responses are not complete."""
        return len(self._uvicorn.open_requests())

    def abort_response(self) -> None:
        """Close the connection at once if a response has begun and is not complete."""
        cycle, _ = self._uvicorn.unwritten_response()
        if cycle:
            self._uvicorn.mark_disconnected(cycle)
            self.transport.abort()

    # Connection monitor

    def is_idle(self) -> bool:
        """Whether no request is open and no data waits to be sent."""
        # A request with a complete response is not open, even if its body is still arriving.
        is_sending = self.transport.is_closing() or self.transport.get_write_buffer_size()
        return not (is_sending or self._uvicorn.open_requests())

    def close(self) -> None:
        """Close the idle connection."""
        self.transport.close()

    def check_timeouts(self, now: float) -> None:
        """Close the connection if its peer is too slow."""
        if self._is_response_stalled(now):
            # close() would wait until the peer has taken the rest.
            self.transport.abort()
        if self.transport.is_closing():
            return
        state, timeouts, limits = self._uvicorn.peer_state(), self._timeouts, self._limits
        if state is PeerState.IDLE:
            if timeouts.is_idle_too_long(now, self.scope):
                self.close()
        elif state is PeerState.SENDING_HEAD:
            if timeouts.is_head_late(now, self.scope, is_blocked=self._uvicorn.is_blocked()):
                self.reject(RequestTimeout(f"The headers were not complete within {limits.header_timeout:g} seconds."))
        elif state is PeerState.SENDING_BODY:
            is_blocked = self._uvicorn.is_blocked()
            if timeouts.is_body_stalled(now, self.scope, self._body_nbytes, is_blocked=is_blocked):
                rate = limits.min_bytes_per_second
                self.reject(RequestTimeout(f"The body arrived too slowly: less than {rate} bytes per second."))
        else:
            timeouts.stop_request()

    def _is_response_stalled(self, now: float) -> bool:
        unsent_nbytes = self.transport.get_write_buffer_size()
        if not unsent_nbytes:
            self._timeouts.stop_response()
            return False
        # Count also what the application has not yet written. Both shrink only as the peer takes data.
        cycle, unwritten_nbytes = self._uvicorn.unwritten_response()
        return self._timeouts.is_response_stalled(now, cycle, unsent_nbytes + unwritten_nbytes)
