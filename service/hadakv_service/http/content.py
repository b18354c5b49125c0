"""Content types of requests, and msgpack and JSON responses."""

from collections.abc import Mapping, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hadakv_service.errors import UnsupportedMediaType
from hadakv_service.wire.serialization import Buffer, encode_chunks, split

MSGPACK = "application/msgpack"
JSON = "application/json"
OCTETS = "application/octet-stream"
_MSGPACK_NAMES = {MSGPACK, "application/x-msgpack", "application/vnd.msgpack"}


def is_json(request: Request, *, json_allowed: bool = False) -> bool:
    """Whether the body is JSON and not msgpack, by its Content-Type.

    Raises:
        UnsupportedMediaType: the type is neither, or is JSON without `json_allowed`, or the body is compressed.
    """
    check_uncompressed(request)
    name = _content_type(request)
    if name in _MSGPACK_NAMES:
        return False
    if json_allowed and name == JSON:
        return True
    allowed = f"{MSGPACK} or {JSON}" if json_allowed else MSGPACK
    raise _wrong_type(name, allowed)


def check_octet_stream(request: Request) -> None:
    """Reject bodies whose Content-Type is not application/octet-stream.

    Raises:
        UnsupportedMediaType: the type is missing or another one, or the body is compressed.
    """
    check_uncompressed(request)
    name = _content_type(request)
    if name != OCTETS:
        raise _wrong_type(name, OCTETS)


def _wrong_type(name: str, allowed: str) -> UnsupportedMediaType:
    if not name:
        return UnsupportedMediaType(f"The request has no Content-Type header. It must be {allowed}.")
    return UnsupportedMediaType(f"The content type must be {allowed}, not {name}.")


def check_uncompressed(request: Request) -> None:
    """Reject bodies with a Content-Encoding.

    Raises:
        UnsupportedMediaType: there is a Content-Encoding other than `identity`.
    """
    for encoding in request.headers.getlist("content-encoding"):
        if encoding.strip().lower() not in ("", "identity"):
            raise UnsupportedMediaType(f"Content-Encoding is not supported: {encoding!r}. Send the body uncompressed.")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def send_chunks(
    send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], chunks: Sequence[Buffer]
) -> None:
    """Send a response whose body is these chunks, in messages of limited size."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    parts = [part for chunk in chunks for part in split(chunk)]
    for part in parts[:-1]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    # The last part ends the body. An empty message for that would cost as much as a part.
    await send({"type": "http.response.body", "body": parts[-1]})


class MsgpackResponse(Response):
    """Msgpack response that is sent in chunks, so that large tensors are not copied."""

    media_type = MSGPACK

    def __init__(
        self, content: Mapping[str, object], status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.chunks: list[Buffer] = encode_chunks(content)
        length = sum(map(len, self.chunks))
        super().__init__(status_code=status_code, headers={"content-length": str(length), **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the response."""
        await send_chunks(send, self.status_code, self.raw_headers, self.chunks)


def metadata_response(request: Request, content: Mapping[str, object], status_code: int = 200) -> Response:
    """Return a response without tensors: msgpack if the request accepts it, else JSON."""
    accepted = request.headers.get("accept", "").lower()
    if any(name in accepted for name in _MSGPACK_NAMES):
        return MsgpackResponse(content, status_code)
    return Response(msgspec.json.encode(content), status_code, media_type=JSON)
