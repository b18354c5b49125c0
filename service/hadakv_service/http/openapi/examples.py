"""Example bodies of requests and responses. They come from the codec, so a request gives the response shown for it."""

import base64
from typing import Any

import msgspec
import numpy as np

from hadakv_kernels import Codec, Encoded, reference
from hadakv_service.operations.describe import describe
from hadakv_service.sessions.layer_run import LayerRun
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.session_store import SessionRecord
from hadakv_service.wire import responses, serialization

SESSION = "chat-1"
FORK = "chat-1b"
HEAD_DIM = 64
# 26 November 2026, 08:46:43 UTC.
_MOMENT = 1795682803.0
_X = np.linspace(-1, 1, HEAD_DIM, dtype=np.float16)
_CODEC = Codec()
_METRICS = """# HELP hadakv_appended_tokens_total Tokens stored by appends.
# TYPE hadakv_appended_tokens_total counter
hadakv_appended_tokens_total 9982.0
"""


def _encode(x: Any, codec: Codec) -> Encoded:
    return reference.encode(x, codec.at(HEAD_DIM))


def _stream(encoded: Encoded, codec: Codec = _CODEC) -> dict[str, Any]:
    return serialization.stream(encoded, codec.at(HEAD_DIM))


_TOKEN = _X.reshape(1, 1, 1, HEAD_DIM)
_ROW = _encode(_X.reshape(1, HEAD_DIM), _CODEC)
_SIX_BITS = Codec(bits=6)


def _request(body: str) -> tuple[str, dict[str, Any]]:
    """Return the summary and the content of an example of a request body."""
    token = serialization.tensor(_TOKEN)
    examples: dict[str, tuple[str, dict[str, Any]]] = {
        "AppendBody": ("One token of one layer and head", {"k": token, "v": token, "position": 0}),
        "SessionBody": (
            "One layer and head, 4 bits",
            {"layers": 1, "kv_heads": 1, "head_dim": 64, "codec": {"bits": 4}},
        ),
        "TruncateBody": ("Keep the first token", {"length": 1}),
        "ForkBody": ("A new session with the first token", {"id": FORK, "length": 1}),
        "EncodeBody": (
            "Two vectors at 6 bits",
            {"x": serialization.tensor(np.tile(_X, (2, 1))), "codec": {"bits": _SIX_BITS.bits}},
        ),
        "DecodeBody": ("One vector of 64", {**_stream(_ROW), "head_dim": HEAD_DIM}),
    }
    return examples[body]


def _response(schema: str) -> dict[str, Any] | str | None:
    """Return the content of an example of a response body; None if its schema says enough."""
    stored = _stream(_encode(_TOKEN, _CODEC))
    info = _info()
    decoded = reference.decode(_ROW, _CODEC.at(HEAD_DIM))
    examples: dict[str, dict[str, Any] | str] = {
        "StoredAppend": {"session": SESSION, "position": 0, "tokens": 1, "length": 1, "k": stored, "v": stored},
        "Range": {"start": 0, "stop": 1, "length": 1, "k": stored, "v": stored},
        "Encoded": _stream(_encode(np.tile(_X, (2, 1)), _SIX_BITS), _SIX_BITS),
        "Values": {"values": serialization.tensor(decoded)},
        "SessionInfo": {**info},
        "SessionList": {"sessions": [info], "next": None},
        "Metrics": _METRICS,
    }
    return examples.get(schema)


def _info() -> responses.SessionInfo:
    """Return the description of the session that the example of an append makes."""
    encoded = _encode(_TOKEN, _CODEC)
    run = LayerRun(1, 0, 1, (Page(encoded, encoded),))
    session = Session(codecs=(_CODEC, _CODEC), kv_heads=1, head_dim=HEAD_DIM, durability="spill", layers=1, runs=(run,))
    return describe(SESSION, SessionRecord(session, _MOMENT, _MOMENT))


def _shown(value: object) -> Any:
    """Return a value as JSON shows it, with the bytes of tensors as base64."""
    return msgspec.to_builtins(value, enc_hook=lambda array: base64.b64encode(array.tobytes()).decode())


def request_bytes(body: str) -> bytes:
    """Return the example of a request body as the msgpack bytes to send."""
    return b"".join(serialization.encode_chunks(_request(body)[1]))


def of_request(body: str, *, msgpack: bool) -> dict[str, Any]:
    """Return the example of a request body for one content type. For msgpack it has also the bytes to send."""
    summary, value = _request(body)
    example = {"summary": summary, "value": _shown(value)}
    if msgpack:
        example["x-msgpack-base64"] = base64.b64encode(request_bytes(body)).decode()
    return {"example": example}


def of_response(schema: str) -> dict[str, Any]:
    """Return the `examples` of a response body; empty if there are none."""
    value = _response(schema)
    return {} if value is None else {"examples": {"example": {"value": _shown(value)}}}
