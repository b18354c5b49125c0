"""Requests and responses as values, and the refusals among the responses. No I/O happens here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from json import loads
from typing import Any, Generic, TypeVar

import msgpack  # type: ignore[import-untyped]  # it ships no types

from hadakv_client.errors import Problem, ProtocolError
from hadakv_client.http.body import Body
from hadakv_client.http.files import OCTETS, FileBody, Target
from hadakv_client.http.problems import problem

MSGPACK = "application/msgpack"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """A request, all but the address of the service and the caller's token.

    Attributes:
        method: `"GET"`, `"POST"`, ...
        path: from `/` on, with the query.
        headers: names in lower case; with a body, its type and length are among them.
        body: can be sent any number of times; None for no body.
        idempotent: whether doing it twice is the same as doing it once, so that it may be sent again
            when nobody knows what became of it.
        target: where the body of an answer goes that is a file; None for memory.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | FileBody | None = None
    idempotent: bool = True
    target: Target | None = None

    @classmethod
    def with_body(cls, method: str, path: str, message: Mapping[str, Any], **more: Any) -> "Request":
        """A request with a msgpack body.

        Args:
            method: `"POST"` or `"PUT"`.
            path: from `/` on.
            message: see `Body`.
            more: further attributes.
        """
        body = Body(message)
        headers = {"content-type": MSGPACK, "content-length": str(body.nbytes), **more.pop("headers", {})}
        return cls(method, path, headers, body, **more)

    def target_of(self, status: int, headers: Mapping[str, str]) -> Target | None:
        """Where the body of an answer with that status and those headers goes; None for memory."""
        return self.target if status == HTTPStatus.OK and headers.get("content-type") == OCTETS else None


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response.

    Attributes:
        status: the HTTP status.
        headers: names in lower case, or a mapping that ignores case.
        body: all of it; nothing if it went to the request's target.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | memoryview

    def check(self) -> None:
        """Nothing, for an answer of the 200s.

        Raises:
            Problem: the service refused.
            ProtocolError: the status is no answer at all, for example a redirection.
        """
        if self.status >= 400:
            raise self._problem()
        if not 200 <= self.status < 300:
            raise ProtocolError(f"the answer has the status {self.status}: is there a service at that address?")

    def check_file(self) -> None:
        """Nothing, for an answer that is a file.

        Raises:
            Problem: the service refused.
            ProtocolError: the answer is something else.
        """
        self.check()
        if self.headers.get("content-type") != OCTETS:
            raise ProtocolError(f"the answer is no file but {self._kind()}: is there a service at that address?")

    def document(self) -> dict[str, Any]:
        """The msgpack map an answer is.

        Raises:
            Problem: the service refused.
            ProtocolError: the answer is something else.
        """
        self.check()
        try:
            document = msgpack.unpackb(self.body)
        except ValueError as error:
            message = f"the answer is not msgpack but {self._kind()}: is there a service at that address?"
            raise ProtocolError(message) from error
        if not isinstance(document, dict):
            raise ProtocolError(f"the answer is no map but {type(document).__name__}")
        return document

    def _kind(self) -> str:
        return self.headers.get("content-type", "without a type")

    def _problem(self) -> Problem:
        try:
            document = loads(bytes(self.body))
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            # A proxy's page, or a server's plain text: whatever it says, the status is known.
            document = {"title": _phrase(self.status), "detail": bytes(self.body[:200]).decode("utf-8", "replace")}
        if "x-request-id" in self.headers:
            document.setdefault("request_id", self.headers["x-request-id"])
        seconds = self.headers.get("retry-after", "")
        # The header may also be a date; that counts as none.
        return problem(self.status, document, float(seconds) if seconds.isdecimal() else None)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how to read its response.

    Attributes:
        request: the request.
        parse: raises `Problem` or `ProtocolError`.
        parse_repetition: the same, where an earlier attempt may have been carried out unseen.
    """

    request: Request
    parse: Callable[[Response], T]
    parse_repetition: Callable[[Response], T] | None = None
