"""A request on its way to its answer, and the id by which logs, traces, headers and problem documents name it."""

import os
import re
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from itertools import count
from time import perf_counter

from starlette.types import Message, Scope, Send

from hadakv_service.asgi_extensions import Headers, is_disconnected, replace_send_response

HEADER = b"x-request-id"
# Where a scope has its exchange.
SCOPE_KEY = "hadakv.exchange"
# What nginx calls a request whose client did not wait for the answer.
CLIENT_CLOSED_REQUEST = 499

_GIVEN = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# Chance tells processes apart, and a number the requests of one.
_PREFIX = os.urandom(8).hex().encode()
_numbers = count(1)

current: "ContextVar[RequestRecord | None]" = ContextVar("exchange", default=None)


class RequestRecord:
    """What becomes known of a request.

    Attributes:
        scope: its ASGI scope.
        id: what the client calls it, or a name of our own.
        started: perf_counter's seconds.
        status: of the answer; 0 before there is one.
        received: bytes of its body that were read.
        sent: bytes of the answer's body that were handed to the connection.
        route: template of its path, `""` while nobody has looked.
        trace_id: of the trace it belongs to, in hex, where there is one.
        whole: whether the answer is known to have been handed over as a whole.
        lost: whether the client was seen to have left while it was answered.
        unfinished: whether its body is known not to have come as a whole, though waited for.
    """

    __slots__ = (
        "_send",
        "_send_response",
        "body_incomplete",
        "client_disconnected",
        "id",
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
        self.route = self.trace_id = ""
        self.response_complete = self.client_disconnected = self.body_incomplete = False
        self._send = send
        self._send_response = replace_send_response(scope, self.send_response)

    async def send(self, message: Message) -> None:
        """Send part of the answer, and its id with the head."""
        if message["type"] == "http.response.start":
            self.status = self.status or message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (HEADER, self.id)]}
        # Once the last of the answer has been handed over it can no longer be told from one that arrived.
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
        """The status, or that of a client that is gone."""
        arrived = self.response_complete or (self.status and not (self.client_disconnected or self._is_disconnected()))
        return self.status if arrived else CLIENT_CLOSED_REQUEST

    @property
    def tenant(self) -> str | None:
        """Whose request it is, where tokens are used."""
        tenant: str | None = self.scope.get("state", {}).get("tenant")
        return tenant

    @property
    def client(self) -> str | None:
        """The other end's address; none has one who comes through a Unix domain socket."""
        return address(self.scope.get("client"))


def request_id(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The `X-Request-Id` of a request, or a new one if it has none or a bad one."""
    for name, value in headers:
        if name == HEADER and _GIVEN.fullmatch(value):
            return value
    return b"%b-%x" % (_PREFIX, next(_numbers))


def current_id() -> str:
    """The id of the request that is being worked on, `""` if none is."""
    exchange = current.get()
    return exchange.id.decode() if exchange else ""


def note_received(nbytes: int) -> None:
    """Count bytes of the body of the request that is being worked on."""
    exchange = current.get()
    if exchange is not None:
        exchange.received += nbytes


def note_body_incomplete() -> None:
    """Note that the body of the request that is being worked on was waited for, and is no longer."""
    exchange = current.get()
    if exchange is not None:
        exchange.body_incomplete = True


def address(client: tuple[str, int] | None) -> str | None:
    """An address as people write it."""
    if not client:
        return None
    host, port = client
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


OTHER = "other"


_PARAMETER = re.compile(r"\\{\w+\\}")


class RouteTemplates:
    """The templates of an app's paths, `/sessions/{id}/kv` say."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = [OTHER, *dict.fromkeys(paths)]
        patterns = [_PARAMETER.sub("[^/]+", re.escape(path)) for path in self._paths[1:]]
        self._pattern = re.compile("|".join(f"({pattern})" for pattern in patterns))

    def match(self, path: str) -> str:
        """The template that fits a path; "other" if none does, so that there are never more."""
        match = self._pattern.fullmatch(path)
        return self._paths[match.lastindex or 0] if match else OTHER
