"""Requests and responses as plain values. Nothing here does I/O."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from json import loads
from typing import Any, Generic, TypeVar

import msgpack  # type: ignore[import-untyped]  # it ships no types

from hadakv_client.errors import Problem, ProtocolError
from hadakv_client.http.body import Body
from hadakv_client.http.files import OCTET_STREAM, FileBody, FileDestination
from hadakv_client.http.problems import problem

MSGPACK = "application/msgpack"
_WRONG_SERVER = "Is the URL the address of a hadakv service?"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """Request without the address of the service and without the caller's token.

    Attributes:
        method: `"GET"`, `"POST"`, ...
        path: path and query, starting with `/`.
        headers: headers with names in lower case. With a body they include its type and length.
        body: body that can be sent several times; None for no body.
        idempotent: whether the request can be sent twice with the same effect as once. If so, it can be sent again
            when its outcome is unknown.
        destination: file for the body of a successful response; None for memory.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | FileBody | None = None
    idempotent: bool = True
    destination: FileDestination | None = None

    @classmethod
    def with_body(cls, method: str, path: str, message: Mapping[str, Any], **more: Any) -> "Request":
        """Return a request with a msgpack body.

        Args:
            method: `"POST"` or `"PUT"`.
            path: path and query, starting with `/`.
            message: see `Body`.
            more: further attributes.
        """
        body = Body(message)
        headers = {"content-type": MSGPACK, "content-length": str(body.nbytes), **more.pop("headers", {})}
        return cls(method, path, headers, body, **more)

    def destination_for(self, status: int, headers: Mapping[str, str]) -> FileDestination | None:
        """Return the file for the body of a response with this status and headers; None for memory."""
        is_file = status == HTTPStatus.OK and headers.get("content-type") == OCTET_STREAM
        return self.destination if is_file else None


@dataclass(frozen=True, slots=True)
class Response:
    """Complete response.

    Attributes:
        status: HTTP status.
        headers: headers with names in lower case, or a case-insensitive mapping.
        body: whole body; empty if it was written to the request's destination.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | memoryview

    def check(self) -> None:
        """Check that the status is 2xx.

        Raises:
            Problem: the service rejected the request.
            ProtocolError: the status is not one of the service, for example a redirection.
        """
        if self.status >= 400:
            raise self._problem()
        if not 200 <= self.status < 300:
            raise ProtocolError(f"invalid response: unexpected status {self.status}. {_WRONG_SERVER}")

    def check_file(self) -> None:
        """Check that the response is a file.

        Raises:
            Problem: the service rejected the request.
            ProtocolError: the response is not a file.
        """
        self.check()
        if self.headers.get("content-type") != OCTET_STREAM:
            raise ProtocolError(f"invalid response: expected a file, not {self._content_type()}. {_WRONG_SERVER}")

    def document(self) -> dict[str, Any]:
        """Return the msgpack map in the body.

        Raises:
            Problem: the service rejected the request.
            ProtocolError: the body is not a msgpack map.
        """
        self.check()
        try:
            document = msgpack.unpackb(self.body)
        except ValueError as error:
            message = f"invalid response: expected msgpack, not {self._content_type()}. {_WRONG_SERVER}"
            raise ProtocolError(message) from error
        if not isinstance(document, dict):
            raise ProtocolError(f"invalid response: expected a map, not {type(document).__name__}")
        return document

    def _content_type(self) -> str:
        return self.headers.get("content-type", "a body without a content type")

    def _problem(self) -> Problem:
        try:
            document = loads(bytes(self.body))
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            # A proxy sent an HTML page, or a server sent plain text. Only the status is reliable.
            document = {"title": _phrase(self.status), "detail": bytes(self.body[:200]).decode("utf-8", "replace")}
        if "x-request-id" in self.headers:
            document.setdefault("request_id", self.headers["x-request-id"])
        seconds = self.headers.get("retry-after", "")
        # Retry-After may also be a date. Ignore dates, as the service sends seconds.
        return problem(self.status, document, float(seconds) if seconds.isdecimal() else None)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """Request, and the functions that parse its response.

    Attributes:
        request: request to send.
        parse: converts a response to the result; raises `Problem` or `ProtocolError`.
        parse_retry: used instead of `parse` if an earlier attempt may have been carried out; None uses `parse`.
    """

    request: Request
    parse: Callable[[Response], T]
    parse_retry: Callable[[Response], T] | None = None
