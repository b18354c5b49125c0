"""The connection once more: its peer has only so much time, may send only so large a head, and may have to give way.

A request costs nothing but a note of what came. Once in a while the watch looks at each connection: what its peer is
at, since when, and how many bytes it has moved meanwhile. Who takes too long is answered 408 where an answer can still
be given, and disconnected. So slow senders hold no requests, and readers that have stopped no answers, for ever.
"""

import asyncio
from enum import Enum, auto
from time import perf_counter
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from hadakv_service.asgi_extensions import RECORD_REJECTED
from hadakv_service.errors import Busy, HeadersTooLarge, MalformedRequest, RequestTimeout, ServiceError
from hadakv_service.observability.request_record import HEADER
from hadakv_service.problem_details import problem_response
from hadakv_service.server.connection_monitor import ConnectionMonitor
from hadakv_service.server.progress_timeout import ProgressTimeout
from hadakv_service.server.whole_protocol import WholeProtocol

# Requests that a connection may send ahead of their answers.
MAX_PIPELINED = 100


class PeerState(Enum):
    """What a connection's peer is at."""

    IDLE = auto()
    AWAITING_RESPONSE = auto()
    SENDING_HEAD = auto()
    SENDING_BODY = auto()


class HttpProtocol(WholeProtocol):
    """The connection, with limits to what it waits for.

    Attributes:
        heard: when something last came, by `perf_counter`: the loop has whole milliseconds, in which many may come.
    """

    def __init__(self, *args: Any, watch: ConnectionMonitor, **options: Any) -> None:
        super().__init__(*args, **options)
        self._watch = watch
        self._limits = watch.limits
        self._incoming = ProgressTimeout()
        self._outgoing = ProgressTimeout()
        self._refusal: ServiceError | None = None
        # What came of a head that is still incomplete, and of trailers; and the last that came of anything. What a
        # head begins in may have been another request's before: at least so much is of the head, and at most.
        self._head_nbytes = self._head_most = 0
        self._trailers_nbytes: int | None = None
        self._arrived_nbytes = 0
        self._body_nbytes = 0
        self.last_activity = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Find room for the connection."""
        super().connection_made(transport)
        self.last_activity = perf_counter()
        self._watch.admit(self)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and refuse a head that goes on for too long."""
        self.last_activity = perf_counter()
        self._arrived_nbytes = len(data)
        super().data_received(data)
        if self._whole is self.scope:
            return
        if self.cycle is None or self.cycle.scope is not self.scope:
            self._head_nbytes += len(data) if self._head_nbytes else self._parsed_nbytes()
            self._head_most += len(data)
            self._end_if_larger(self._head_nbytes)
        elif self._trailers_nbytes is not None:
            self._trailers_nbytes += len(data)
            self._end_if_larger(self._trailers_nbytes)

    def _end_if_larger(self, nbytes: int) -> None:
        if nbytes > self._limits.max_header_nbytes:
            self.reject(HeadersTooLarge(self._limits.max_header_nbytes))

    def on_headers_complete(self) -> None:
        """Refuse a head that is too large, and a request too many ahead of its answer."""
        limit = self._limits.max_header_nbytes
        # Only where much came is it worth measuring.
        if self._head_most + self._arrived_nbytes > limit and self._parsed_nbytes() > limit:
            self._refuse_parsing(HeadersTooLarge(limit))
        if len(self.pipeline) > MAX_PIPELINED:
            self._refuse_parsing(Busy("Too many requests were sent ahead of their answers."))
        self._head_nbytes = self._head_most = 0
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            # What comes as trailers is no part of the head that was checked.
            self.headers = []

    def _parsed_nbytes(self) -> int:
        lines = sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)
        return len("GET  HTTP/1.1\r\n\r\n") + len(self.url) + lines

    def _refuse_parsing(self, refusal: ServiceError) -> None:
        self._refusal = refusal
        raise httptools.HttpParserError(refusal.detail)

    def on_chunk_header(self) -> None:
        """Count, until there is a body: after the last chunk's header come trailers, which are kept by the parser."""
        # The rest of what has just arrived may be anything.
        self._trailers_nbytes = -self._arrived_nbytes

    def on_body(self, body: bytes) -> None:
        """Count what came; it is no trailer."""
        self._trailers_nbytes = None
        self._body_nbytes += len(body)
        super().on_body(body)

    def count_body(self, nbytes: int) -> None:
        """Note that so much of a body came past the parser."""
        self._body_nbytes += nbytes

    def on_response_complete(self) -> None:
        """Go on with the next request. As uvicorn's, but for its timer: who stays idle is the watch's matter."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be parsed, or was refused while it was."""
        self.reject(self._refusal or MalformedRequest(msg))

    def reject(self, error: ServiceError) -> None:
        """Answer for the app, if it is this request's turn to be answered, and end the connection."""
        if not self.transport.is_closing() and self._can_reject_now():
            request_id = self._record_rejection(error)
            response = problem_response(error)
            headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
            headers += [(HEADER, request_id)] if request_id else []
            lines = [b"%b: %b\r\n" % header for header in headers]
            self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", bytes(response.body)]))
        for cycle in self._cycles:
            # Whatever the app still has to say, the connection has no room for it.
            cycle.disconnected = True
        self.transport.close()

    def _record_rejection(self, error: ServiceError) -> bytes:
        """Let the request be counted and logged; its id."""
        scope = None
        if self.cycle is not None and not self.cycle.response_complete:
            scope = self.cycle.scope
            # Whatever the app answers now is too late.
            self.cycle.disconnected = self.cycle.response_complete = True
            self.cycle.message_event.set()
        unread = self.app_state.get(RECORD_REJECTED)
        request_id: bytes = unread(self.client, scope, error.status) if unread else b""
        if request_id:
            error.fields = {**error.fields, "request_id": request_id.decode()}
        return request_id

    def _can_reject_now(self) -> bool:
        """Whether the request that is coming in is the first that was not answered."""
        unanswered = [cycle for cycle in self._cycles if not cycle.response_complete]
        if self.peer_state() is PeerState.SENDING_BODY:
            return unanswered == [self.cycle] and not self.cycle.response_started
        return not unanswered

    def peer_state(self) -> PeerState:
        """What the peer is at."""
        if self._whole is self.scope:
            answered = self.cycle is None or (self.cycle.response_complete and not self.pipeline)
            return PeerState.IDLE if answered else PeerState.AWAITING_RESPONSE
        # uvicorn makes a cycle of a scope once the head is complete.
        if self.cycle is None or self.cycle.scope is not self.scope:
            return PeerState.SENDING_HEAD
        return PeerState.SENDING_BODY

    def is_idle(self) -> bool:
        """Whether it has no request under way, and nothing to send."""
        # A request that was answered before its end is under way no more, though its body still comes.
        unanswered = any(not cycle.response_complete for cycle in self._cycles)
        return not (unanswered or self.transport.is_closing() or self.transport.get_write_buffer_size())

    def end(self) -> None:
        """End the connection, of which nobody expects anything now."""
        self.transport.close()

    def check_timeouts(self, now: float) -> None:
        """End the connection if its peer has taken too long."""
        if self._takes_answer_too_slowly(now):
            # To close would be to wait until it has taken the rest.
            self.transport.abort()
            return
        doing, limits = self.peer_state(), self._limits
        if doing is PeerState.IDLE:
            if self._incoming.expired(now, (doing, self._whole), 0, limits.idle_seconds):
                self.end()
        elif doing is PeerState.SENDING_HEAD:
            if self._incoming.expired(now, (doing, self.scope), 0, limits.header_timeout, held=self._is_blocked(None)):
                self.reject(RequestTimeout(f"The head was not complete within {limits.header_timeout:g} seconds."))
        elif doing is PeerState.SENDING_BODY:
            came = self._body_nbytes / limits.min_bytes_per_second
            held = self._is_blocked(self.cycle)
            if self._incoming.expired(now, (doing, self.scope), came, limits.stall_timeout, held=held):
                self.reject(
                    RequestTimeout(
                        f"The body came too slowly: with less than {limits.min_bytes_per_second} bytes a second."
                    )
                )
        else:
            self._incoming.reset()

    def _is_blocked(self, under_way: RequestResponseCycle | None) -> bool:
        """Whether the peer cannot send, not being read from, or need not, others being to be answered first."""
        others = (cycle for cycle in self._cycles if cycle is not under_way and not cycle.response_complete)
        return self.flow.read_paused or any(others)

    def _takes_answer_too_slowly(self, now: float) -> bool:
        waiting = self.transport.get_write_buffer_size()
        if not waiting:
            self._outgoing.reset()
            return False
        # What of an answer is not yet written counts as well: both become less only as the peer takes them.
        under_way = (cycle for cycle in self._cycles if cycle.response_started and not cycle.response_complete)
        answered = next(under_way, None)
        to_come = answered.expected_content_length if answered else 0
        came = -(waiting + to_come) / self._limits.min_bytes_per_second
        return self._outgoing.expired(now, (self, answered), came, self._limits.stall_timeout)
