"""What both clients have in common on httpx's side: address and token, whom to trust, receiving a body, its errors."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import httpx
import numpy as np

from hadakv_client.errors import ConnectionLost, Timeout
from hadakv_client.flow import Retries
from hadakv_client.http.files import PathLike
from hadakv_client.protocol import Request, Response

DEFAULT_URL = "http://127.0.0.1:8765"
UNIX = "unix:"
# An answer may wait for others to be encoded; a connection to a service that is there comes at once.
DEFAULT_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Address:
    """Where the service is, who calls it, and how often.

    Attributes:
        name: where it is, as messages have it.
        uds: path of its Unix domain socket; None for TCP.
        retries: how often a call is tried again.

    Raises:
        ValueError: the URL is neither one of http or https nor `unix:` with a path, or the token cannot stand in a
            header.
    """

    def __init__(self, base_url: str, token: str | None, retries: int | Retries, uds: str | None = None) -> None:
        socket = base_url.removeprefix(UNIX) if base_url.startswith(UNIX) and uds is None else ""
        url = "http://localhost" if socket else base_url
        if not _is_http(url):
            raise ValueError(f"the URL must be like {DEFAULT_URL} or unix:/path/of/a/socket, not {base_url!r}")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ValueError("token must be printable ASCII")
        self._base_url = url.rstrip("/")
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self.uds = socket or uds
        self.name = f"{UNIX}{self.uds}" if self.uds else _without_user(self._base_url)
        self.retries = retries if isinstance(retries, Retries) else Retries(retries)

    @staticmethod
    def connecting(ca_file: PathLike | None) -> "_Connecting":
        """What httpx's clients and transports of both kinds are to be made with; raises as `trusted`."""
        # The environment's proxies are for the world outside, and a .netrc would replace the token.
        return {"verify": trusted(ca_file), "trust_env": False}

    def url(self, request: Request) -> str:
        """Where a request goes."""
        return self._base_url + request.path

    def headers(self, request: Request) -> dict[str, str]:
        """A request's headers and the caller's."""
        # Compressed again, an answer would only be slower, and would not have the length its header says.
        return {**request.headers, **self._headers, "accept-encoding": "identity"}


class _Connecting(TypedDict):
    verify: ssl.SSLContext | bool
    trust_env: bool


def _is_http(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in {"http", "https"} and bool(parsed.host)


def _without_user(url: str) -> str:
    """The URL for whoever reads a log, who need not know a password in it."""
    return str(httpx.URL(url).copy_with(userinfo=b""))


def trusted(ca_file: PathLike | None) -> ssl.SSLContext | bool:
    """Who must vouch for a service, as httpx's `verify` has it: those in a file alone, or the usual authorities.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no certificate in it, or one that cannot be used.
    """
    if ca_file is None:
        return True
    # An error of OpenSSL's would not name the file.
    Path(ca_file).open("rb").close()
    try:
        return ssl.create_default_context(cafile=os.fspath(ca_file))
    except ssl.SSLError as error:
        none = error.reason == "NO_CERTIFICATE_OR_CRL_FOUND"
        wrong = "has no certificate in PEM" if none else f"cannot be used: {error}"
        raise ValueError(f"{os.fspath(ca_file)} {wrong}") from error


def declared_nbytes(head: httpx.Response) -> int | None:
    """How long a response's body is said to be."""
    declared = head.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else None


class Arrival:
    """A response that is being received, into one buffer: fresh memory costs more than anything else here.

    Args:
        head: the response, its body not yet read.
    """

    def __init__(self, head: httpx.Response) -> None:
        self._head = head
        self._chunks: list[bytes] = []
        declared = declared_nbytes(head)
        self._buffer = None if declared is None else np.empty(declared, np.uint8).data
        self._filled = 0

    def add(self, chunk: bytes) -> None:
        """Take the next part of the body; there is no more of it than was declared, httpx sees to that."""
        if self._buffer is None:
            self._chunks.append(chunk)
        else:
            self._buffer[self._filled : self._filled + len(chunk)] = chunk
            self._filled += len(chunk)

    def response(self) -> Response:
        """The response, now that it is complete."""
        body = b"".join(self._chunks) if self._buffer is None else self._buffer[: self._filled]
        return Response(self._head.status_code, self._head.headers, body)


@contextmanager
def transport_errors(request: Request, address: Address) -> Iterator[None]:
    """Turn httpx's errors while a request is under way into ours.

    Raises:
        ConnectionLost: the connection could not be made, or broke.
        Timeout: it took too long.
    """
    try:
        yield
    except httpx.TransportError as error:
        kind = Timeout if isinstance(error, httpx.TimeoutException) else ConnectionLost
        what = f"{request.method} {request.path} at {address.name}: {str(error) or type(error).__name__}"
        raise kind(what, sent=not isinstance(error, _NEVER_SENT)) from error
