"""HTTP contract with plain httpx and msgpack. Sharing code with the service could hide a mistake on both sides."""

import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgpack
import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import DTYPES, Codec, Encoded, reference

MSGPACK = "application/msgpack"
JSON = "application/json"
PROBLEM = "application/problem+json"

Json = dict[str, Any]


def tensor(values: NDArray[Any]) -> Json:
    """Return an array as a tensor of the wire format."""
    return {"dtype": values.dtype.name, "shape": list(values.shape), "data": values.tobytes()}


def array(wire: Json) -> NDArray[Any]:
    """Return the array of a tensor of the wire format."""
    dtype = DTYPES.get(wire["dtype"], np.dtype(np.uint8))
    return np.frombuffer(wire["data"], dtype).reshape(wire["shape"])


def stream(values: NDArray[Any], codec: Codec) -> Json:
    """Return the response that the service must give for an encoded array: the reference's bytes."""
    return encoded_stream(reference.encode(values, codec.at(values.shape[-1])), codec)


def encoded_stream(encoded: Encoded, codec: Codec) -> Json:
    """Return an encoded stream in the wire format."""
    if codec.kind == "float16":
        return {"values": tensor(encoded.packed.view(np.float16))}
    return {"packed": tensor(encoded.packed), "norms": tensor(encoded.norms)}


def append_body(k: NDArray[Any], v: NDArray[Any], **more: Any) -> Json:
    """Return the body of an append."""
    return {"k": tensor(k), "v": tensor(v), **more}


@dataclass(frozen=True)
class Answer:
    """HTTP response. `body` is its content, decoded by content type; None if it is empty."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def body(self) -> Any:
        """Decoded content."""
        if not self.content:
            return None
        if self.headers["content-type"] == MSGPACK:
            return msgpack.unpackb(self.content)
        return httpx.Response(self.status, content=self.content).json()

    def problem(self, status: int, slug: str) -> Json:
        """Return the problem document. It must be complete, with that status and slug."""
        assert (self.status, self.headers.get("content-type")) == (status, PROBLEM), self
        document: Json = self.body
        assert document["type"] == f"urn:hadakv:problem:{slug}", document
        assert document["status"] == status, document
        assert document["title"], document
        assert document["detail"], document
        assert document["request_id"] == self.headers["x-request-id"], document
        return document


class Caller:
    """HTTP client that knows only the contract."""

    def __init__(self, url: str, token: str | None = None) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60)

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def send(self, method: str, path: str, content: bytes = b"", content_type: str = MSGPACK, **headers: str) -> Answer:
        """Send a request with any body."""
        response = self.http.request(method, path, content=content, headers={"content-type": content_type, **headers})
        return Answer(response.status_code, response.headers, response.content)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """Send a POST request with a msgpack body."""
        return self.send("POST", path, msgpack.packb(body), **headers)

    def put(self, path: str, body: Any) -> Answer:
        """Send a PUT request with a msgpack body."""
        return self.send("PUT", path, msgpack.packb(body))

    def append(self, session: str, k: NDArray[Any], v: NDArray[Any], **more: Any) -> Answer:
        """Append to a session."""
        return self.post(f"/sessions/{session}/kv", append_body(k, v, **more))

    def get(self, path: str, *, accept: str = "*/*", **params: str | int) -> Answer:
        """Send a GET request with query parameters."""
        # An empty mapping would remove a query that is part of the path.
        response = self.http.get(path, params=params or None, headers={"accept": accept})
        return Answer(response.status_code, response.headers, response.content)

    def read(self, session: str, **params: str | int) -> Any:
        """Read a session that must exist; return the decoded body."""
        answer = self.get(f"/sessions/{session}/kv", accept=MSGPACK, **params)
        assert answer.status == 200, answer
        return answer.body

    def content(self, session: str, **params: str | int) -> Json:
        """Return what a read responds with, without the id of the session."""
        return {name: value for name, value in self.read(session, **params).items() if name != "session"}

    def info(self, session: str) -> Json:
        """Return the description of a session that must exist."""
        answer = self.get(f"/sessions/{session}")
        assert answer.status == 200, answer
        body: Json = answer.body
        return body

    def delete(self, path: str) -> Answer:
        """Send a DELETE request."""
        response = self.http.delete(path)
        return Answer(response.status_code, response.headers, response.content)

    def used_nbytes(self) -> int:
        """Return the bytes of memory that the service reports as used."""
        return int(self.get("/readyz").body["used_nbytes"])

    def snapshot(self, session: str) -> tuple[Json, bytes]:
        """Return the description and content of a session, without the time of last use."""
        content = self.get(f"/sessions/{session}/kv").content
        info = self.info(session)
        return {name: value for name, value in info.items() if name not in ("last_used", "expires")}, content


def connect(url: str) -> socket.socket:
    """Open a TCP connection, for requests that no HTTP library would send."""
    address = urlsplit(url)
    assert address.hostname is not None
    return socket.create_connection((address.hostname, address.port or 80), timeout=60)


def status_line(connection: socket.socket) -> bytes:
    """Read the first line of a response; empty if the connection was closed without one."""
    with connection.makefile("rb") as lines:
        return lines.readline().strip()
