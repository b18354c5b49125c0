"""httpx parts that both clients share: address and token, response buffer, and error conversion."""

import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager

import httpcore
import httpx
import numpy as np

from hadakv_client.errors import ConnectionLost, ProtocolError, Timeout
from hadakv_client.http.connections.failures import explain
from hadakv_client.protocol import Request, Response

DEFAULT_URL = "http://127.0.0.1:8765"
UNIX_PREFIX = "unix:"
# A request may wait in the queue of the device, so the timeout is long. A running service accepts connections at once.
DEFAULT_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_FAILURES = (httpx.TransportError, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)
_TIMEOUTS = (httpx.TimeoutException, httpcore.TimeoutException)
_NOT_SENT = (
    *(httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout),
    *(httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout),
)
_WITHOUT_SCHEME = re.compile(r"(?!https?:)([\w.-]+|\[[\da-fA-F:]+\]):\d+(/.*)?", re.ASCII)


class Endpoint:
    """Address of a service, and the caller's token.

    Attributes:
        name: address for error messages, without credentials. An address without a scheme is http.
        uds: path of the Unix domain socket; None for TCP.

    Raises:
        ValueError: the URL is not http, https or `unix:` with a path, or has a query or a fragment, or the token is not
            printable ASCII.
    """

    def __init__(self, base_url: str, token: str | None = None, uds: str | None = None) -> None:
        socket = base_url.removeprefix(UNIX_PREFIX) if base_url.startswith(UNIX_PREFIX) and uds is None else ""
        url = "http://localhost" if socket else _with_scheme(base_url)
        if not _is_http(url):
            raise ValueError(f"the URL must be like {DEFAULT_URL} or unix:/path/to/socket, not {base_url!r}")
        if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token):
            raise ValueError(_invalid_token(token))
        self._base_url = url.rstrip("/")
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._headers |= _basic_authorization(url)
        self.uds = socket or uds
        self.name = f"{UNIX_PREFIX}{self.uds}" if self.uds else _without_credentials(self._base_url)

    def url(self, request: Request) -> str:
        """Return the full URL of a request."""
        return self._base_url + request.path

    def headers(self, request: Request) -> dict[str, str]:
        """Return the headers of a request, with the token."""
        # Request no compression. It would cost time, and the body would not have the length in Content-Length.
        return {"user-agent": "hadakv-client", **request.headers, **self._headers, "accept-encoding": "identity"}


def check_url(url: str) -> str:
    """Return the URL of a service unchanged, if it is valid.

    Raises:
        ValueError: the URL is not http, https or `unix:` with a path.
    """
    Endpoint(url)
    return url


def _with_scheme(url: str) -> str:
    return f"http://{url}" if _WITHOUT_SCHEME.fullmatch(url) else url


def _is_http(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    # The operating system takes larger ports modulo 2^16, which leads to another service.
    is_port = parsed.port is None or parsed.port < 1 << 16
    # Paths of calls are appended to the URL.
    return parsed.scheme in {"http", "https"} and bool(parsed.host) and is_port and not set(url) & set("?#")


def _without_credentials(url: str) -> str:
    """Return the URL without user and password, so that error messages do not reveal them."""
    return str(httpx.URL(url).copy_with(userinfo=b""))


def _basic_authorization(url: str) -> dict[str, str]:
    """Return the header for user and password in a URL, for example for a proxy in front of the service."""
    parsed = httpx.URL(url)
    if not parsed.userinfo:
        return {}
    return {"authorization": "Basic " + b64encode(f"{parsed.username}:{parsed.password}".encode()).decode()}


def content_length(response: httpx.Response) -> int | None:
    """Return the declared size of a response body in bytes; None if there is none."""
    declared = response.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else None


class ResponseBuffer:
    """Buffer that collects the body of one response. It allocates once, as allocation dominates the cost of a read.

    Args:
        response: response of which only the headers have been read.

    Raises:
        ProtocolError: the declared size is beyond the memory of this machine.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._chunks: list[bytes] = []
        nbytes = content_length(response)
        self._buffer = None if nbytes is None else _allocate(nbytes)
        self._filled = 0

    def add(self, chunk: bytes) -> None:
        """Add the next chunk of the body. httpx guarantees that the body does not exceed Content-Length."""
        if self._buffer is None:
            self._chunks.append(chunk)
        else:
            self._buffer[self._filled : self._filled + len(chunk)] = chunk
            self._filled += len(chunk)

    def response(self) -> Response:
        """Return the complete response."""
        body = b"".join(self._chunks) if self._buffer is None else self._buffer[: self._filled]
        return Response(self._response.status_code, self._response.headers, body)


def _allocate(nbytes: int) -> memoryview:
    try:
        return np.empty(nbytes, np.uint8).data
    except (MemoryError, ValueError):
        raise ProtocolError(f"no memory for a response of {nbytes} bytes") from None


@contextmanager
def transport_errors(request: Request, endpoint: Endpoint) -> Iterator[None]:
    """Convert errors of httpx and httpcore to errors of the client.

    Raises:
        ConnectionLost: the connection could not be opened, or it broke.
        Timeout: the service did not respond in time.
    """
    try:
        yield
    except _FAILURES as error:
        error_class = Timeout if isinstance(error, _TIMEOUTS) else ConnectionLost
        message = explain(error, f"{request.method} {request.path}", endpoint.name)
        raise error_class(message, sent=not isinstance(error, _NOT_SENT)) from error


def _invalid_token(token: str) -> str:
    """Return what is wrong with a token, without the token itself."""
    if token.strip() != token and token.strip().isascii() and token.strip().isprintable():
        return "the token begins or ends with a line break or another blank: a file's text needs .strip()"
    return "the token must be printable ASCII"
