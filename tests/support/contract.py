"""The contract spoken by hand: plain httpx and msgpack, so that a mistake is not made alike on both sides."""

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
    """An array as the wire has it."""
    return {"dtype": values.dtype.name, "shape": list(values.shape), "data": values.tobytes()}


def array(wire: Json) -> NDArray[Any]:
    """The array a tensor on the wire is."""
    dtype = DTYPES.get(wire["dtype"], np.dtype(np.uint8))
    return np.frombuffer(wire["data"], dtype).reshape(wire["shape"])


def stream(values: NDArray[Any], codec: Codec) -> Json:
    """What the service must answer for an array it encoded: the reference's bytes."""
    return encoded_stream(reference.encode(values, codec.at(values.shape[-1])), codec)


def encoded_stream(encoded: Encoded, codec: Codec) -> Json:
    """One encoded stream as the wire has it."""
    if codec.kind == "float16":
        return {"values": tensor(encoded.packed.view(np.float16))}
    return {"packed": tensor(encoded.packed), "norms": tensor(encoded.norms)}


def append_body(k: NDArray[Any], v: NDArray[Any], **more: Any) -> Json:
    """The body of an append."""
    return {"k": tensor(k), "v": tensor(v), **more}


@dataclass(frozen=True)
class Answer:
    """A response; `body` is its content decoded by its content type, None where it has none."""

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def body(self) -> Any:
        """The content, decoded."""
        if not self.content:
            return None
        if self.headers["content-type"] == MSGPACK:
            return msgpack.unpackb(self.content)
        return httpx.Response(self.status, content=self.content).json()

    def problem(self, status: int, slug: str) -> Json:
        """The problem document, which must be of that kind and complete."""
        assert (self.status, self.headers.get("content-type")) == (status, PROBLEM), self
        document: Json = self.body
        assert document["type"] == f"urn:hadakv:problem:{slug}", document
        assert document["status"] == status, document
        assert document["title"], document
        assert document["detail"], document
        assert document["request_id"] == self.headers["x-request-id"], document
        return document


class Caller:
    """A client that knows nothing but the contract."""

    def __init__(self, url: str, token: str | None = None) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60)

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def send(self, method: str, path: str, content: bytes = b"", content_type: str = MSGPACK, **headers: str) -> Answer:
        """Send bytes as they are."""
        response = self.http.request(method, path, content=content, headers={"content-type": content_type, **headers})
        return Answer(response.status_code, response.headers, response.content)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """POST a value as msgpack."""
        return self.send("POST", path, msgpack.packb(body), **headers)

    def put(self, path: str, body: Any) -> Answer:
        """PUT a value as msgpack."""
        return self.send("PUT", path, msgpack.packb(body))

    def append(self, session: str, k: NDArray[Any], v: NDArray[Any], **more: Any) -> Answer:
        """Append to a session."""
        return self.post(f"/sessions/{session}/kv", append_body(k, v, **more))

    def get(self, path: str, *, accept: str = "*/*", **params: str | int) -> Answer:
        """GET with query parameters."""
        # An empty mapping would take away the query that stands in the path.
        response = self.http.get(path, params=params or None, headers={"accept": accept})
        return Answer(response.status_code, response.headers, response.content)

    def read(self, session: str, **params: str | int) -> Any:
        """What a session holds; it must be there."""
        answer = self.get(f"/sessions/{session}/kv", accept=MSGPACK, **params)
        assert answer.status == 200, answer
        return answer.body

    def info(self, session: str) -> Json:
        """A session's description; it must be there."""
        answer = self.get(f"/sessions/{session}")
        assert answer.status == 200, answer
        body: Json = answer.body
        return body

    def delete(self, path: str) -> Answer:
        """DELETE."""
        response = self.http.delete(path)
        return Answer(response.status_code, response.headers, response.content)

    def used_nbytes(self) -> int:
        """Bytes the service says its sessions take."""
        return int(self.get("/readyz").body["used_nbytes"])

    def snapshot(self, session: str) -> tuple[Json, bytes]:
        """All a session is and holds, but when it was last used."""
        content = self.get(f"/sessions/{session}/kv").content
        info = self.info(session)
        return {name: value for name, value in info.items() if name not in ("last_used", "expires")}, content


def connect(url: str) -> socket.socket:
    """A bare connection to the service, for requests no HTTP library would send."""
    address = urlsplit(url)
    assert address.hostname is not None
    return socket.create_connection((address.hostname, address.port or 80), timeout=60)


def status_line(connection: socket.socket) -> bytes:
    """The first line of a response; empty if the connection was closed without one."""
    with connection.makefile("rb") as lines:
        return lines.readline().strip()
