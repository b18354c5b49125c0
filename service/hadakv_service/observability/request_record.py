"""Record of one request: id, bytes, status and outcome. The id appears in logs, traces, headers and problems."""

import os
import re
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from itertools import count
from time import perf_counter

from starlette.types import Message, Scope, Send

from hadakv_service.asgi_extensions import Headers, is_disconnected, replace_send_response

HEADER = b"x-request-id"
# Key of the RequestRecord in the ASGI scope.
SCOPE_KEY = "hadakv.request_record"
# Status that nginx logs when the client disconnects before the response is complete.
CLIENT_CLOSED_REQUEST = 499

_CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# An id consists of a random prefix for each process and a number for each request.
_PREFIX = os.urandom(8).hex().encode()
_numbers = count(1)

current: "ContextVar[RequestRecord | None]" = ContextVar("request_record", default=None)


class RequestRecord:
    """Record of a request and its response, updated while the request is processed.

    Attributes:
        scope: ASGI scope of the request.
        id: request id, from the client or generated.
        started: start time, in seconds of perf_counter.
        status: HTTP status of the response; 0 until the response starts.
        received: bytes of the request body that were read.
        sent: bytes of the response body that were passed to the connection.
        route: route template of the path; empty until it is matched.
        problem: last part of the type of the problem in the response; empty without a problem.
        trace_id: trace id in hex; empty if tracing is disabled.
        response_complete: whether the whole response was passed to the connection.
        client_disconnected: whether the client disconnected during the response.
        body_incomplete: whether the service stopped waiting for the rest of the request body.
    """

    __slots__ = (
        "_send",
        "_send_response",
        "body_incomplete",
        "client_disconnected",
        "id",
        "problem",
        "received",
        "response_complete",
        "route",
        "scope",
        "sent",
        "started",
        "status",
        "trace_id",
    )

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.id = request_id(scope["headers"])
        self.started = perf_counter()
        self.status = self.received = self.sent = 0
        self.route = self.trace_id = self.problem = ""
        self.response_complete = self.client_disconnected = self.body_incomplete = False
        self._send = send
        self._send_response = replace_send_response(scope, self.send_response)

    async def send(self, message: Message) -> None:
        """Send a message of the response. Add the request id to the headers."""
        if message["type"] == "http.response.start":
            self.status = self.status or message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (HEADER, self.id)]}
        # After the last message, a lost response looks like a complete one. Check before and after sending.
        self.client_disconnected = self.client_disconnected or self._is_disconnected()
        await self._send(message)
        self.client_disconnected = self.client_disconnected or self._is_disconnected()
        if self.scope["method"] != "HEAD" and not self.client_disconnected:
            self.sent += len(message.get("body", b""))

    async def send_response(self, status: int, headers: Headers, body: bytes) -> bool:
        """Send a complete response with the request's id in one write. Return whether the client was connected."""
        assert self._send_response is not None
        sent = await self._send_response(status, [*headers, (HEADER, self.id)], body)
        if sent:
            self.record_response(self.route, status, len(body))
        return sent

    def record_response(self, route: str, status: int, nbytes: int) -> None:
        """Record a complete response that did not go through `send`."""
        self.response_complete = True
        self.route = route
        self.status = status
        self.sent = nbytes

    def _is_disconnected(self) -> bool:
        return is_disconnected(self.scope)

    @property
    def outcome(self) -> int:
        """HTTP status of the response, or CLIENT_CLOSED_REQUEST if the client did not receive it."""
        sent = self.response_complete or (self.status and not (self.client_disconnected or self._is_disconnected()))
        return self.status if sent else CLIENT_CLOSED_REQUEST

    @property
    def tenant(self) -> str | None:
        """Name of the authenticated tenant; None without tokens."""
        tenant: str | None = self.scope.get("state", {}).get("tenant")
        return tenant

    @property
    def client(self) -> str | None:
        """Address of the client; None for a Unix domain socket."""
        return format_address(self.scope.get("client"))


def request_id(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the `X-Request-Id` header, or a new id if the header is missing or invalid."""
    for name, value in headers:
        if name == HEADER and _CLIENT_ID.fullmatch(value):
            return value
    return b"%b-%x" % (_PREFIX, next(_numbers))


def current_id() -> str:
    """Return the id of the current request, or an empty string if there is none."""
    record = current.get()
    return record.id.decode() if record else ""


def note_received(nbytes: int) -> None:
    """Add bytes of the request body to the current request's record."""
    record = current.get()
    if record is not None:
        record.received += nbytes


def note_problem(slug: str) -> None:
    """Record the last part of the type of the problem that the current request is answered with."""
    record = current.get()
    if record is not None:
        record.problem = slug


def note_body_incomplete() -> None:
    """Record that the service stopped waiting for the current request's body."""
    record = current.get()
    if record is not None:
        record.body_incomplete = True


def format_address(client: tuple[str, int] | None) -> str | None:
    """Return `host:port`, with an IPv6 host in brackets, or None without a client address."""
    if not client:
        return None
    host, port = client
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# Label of unknown routes and methods.
OTHER = "other"
_PARAMETER = re.compile(r"\\{\w+\\}")


class RouteTemplates:
    """Route templates of an app, for example `/sessions/{id}/kv`."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = [OTHER, *dict.fromkeys(paths)]
        patterns = [_PARAMETER.sub("[^/]+", re.escape(path)) for path in self._paths[1:]]
        self._pattern = re.compile("|".join(f"({pattern})" for pattern in patterns))

    def match(self, path: str) -> str:
        """Return the template that matches a path, or OTHER, so that the number of labels is bounded."""
        match = self._pattern.fullmatch(path)
        return self._paths[match.lastindex or 0] if match else OTHER
