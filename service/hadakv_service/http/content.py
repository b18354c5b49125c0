"""Content types: which body a request has, and which an answer gets."""

from collections.abc import Mapping, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hadakv_service.errors import UnsupportedMediaType
from hadakv_service.wire.serialization import CHUNK_NBYTES, Buffer, encode_chunks

MSGPACK = "application/msgpack"
JSON = "application/json"
OCTETS = "application/octet-stream"
_MSGPACK_NAMES = {MSGPACK, "application/x-msgpack", "application/vnd.msgpack"}


def is_json(request: Request, *, json_allowed: bool = False) -> bool:
    """Whether the body is JSON rather than msgpack.

    Raises:
        UnsupportedMediaType: it is neither, or JSON where only msgpack is read; or it is compressed.
    """
    check_uncompressed(request)
    name = _content_type(request)
    if name in _MSGPACK_NAMES:
        return False
    if json_allowed and name == JSON:
        return True
    allowed = f"{MSGPACK} or {JSON}" if json_allowed else MSGPACK
    raise UnsupportedMediaType(f"The content type must be {allowed}, not {name or 'missing'}.")


def check_octet_stream(request: Request) -> None:
    """Nothing, for a body that is said to be bytes and no more.

    Raises:
        UnsupportedMediaType: it is said to be something else, or nothing, or compressed.
    """
    check_uncompressed(request)
    name = _content_type(request)
    if name != OCTETS:
        raise UnsupportedMediaType(f"The content type must be {OCTETS}, not {name or 'missing'}.")


def check_uncompressed(request: Request) -> None:
    """Nothing, for a body that is sent as it is.

    Raises:
        UnsupportedMediaType: a Content-Encoding has made something else of it.
    """
    for codings in request.headers.getlist("content-encoding"):
        if codings.strip().lower() not in ("", "identity"):
            raise UnsupportedMediaType(f"A body must not be compressed, and this one is said to be {codings!r}.")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def send_chunks(
    send: Send, status_code: int, headers: Sequence[tuple[bytes, bytes]], pieces: Sequence[Buffer]
) -> None:
    """Send an answer; one that is a single small piece is two messages, each of which has its price."""
    await send({"type": "http.response.start", "status": status_code, "headers": headers})
    parts = [piece[start : start + CHUNK_NBYTES] for piece in pieces for start in range(0, len(piece), CHUNK_NBYTES)]
    for part in parts[:-1]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": parts[-1]})


class MsgpackResponse(Response):
    """A msgpack answer sent as pieces, so that large tensors are never copied together."""

    media_type = MSGPACK

    def __init__(self, answer: Mapping[str, object], status_code: int = 200) -> None:
        self.chunks: list[Buffer] = encode_chunks(answer)
        length = sum(map(len, self.chunks))
        super().__init__(status_code=status_code, headers={"content-length": str(length)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the answer."""
        await send_chunks(send, self.status_code, self.raw_headers, self.chunks)


def metadata_response(request: Request, answer: Mapping[str, object], status_code: int = 200) -> Response:
    """An answer without tensors: msgpack where the client asks for it, else JSON."""
    accepted = request.headers.get("accept", "").lower()
    if any(name in accepted for name in _MSGPACK_NAMES):
        return MsgpackResponse(answer, status_code)
    return Response(msgspec.json.encode(answer), status_code, media_type=JSON)
