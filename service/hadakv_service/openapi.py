"""The OpenAPI document: what FastAPI derives from the routes, and what only we know: msgpack bodies and answers."""

import base64
from typing import Any

import msgspec
import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from hadakv_service import wire
from hadakv_service.errors import ServiceError
from hadakv_service.media import JSON, MSGPACK, OCTETS

SUMMARY = "Keeps the KV caches of language models compressed, keyed by session."
DESCRIPTION = """
Bodies are msgpack. A tensor is `{"dtype", "shape", "data"}`, C order, little-endian, `data` a msgpack bin. In this
document's examples bins are shown as base64; each example also stands as `x-msgpack-base64`, the very bytes to send.
"""

_TENSOR = {"$ref": "#/components/schemas/Tensor"}
_BODIES = {
    "AppendBody": wire.AppendBody,
    "SessionBody": wire.SessionBody,
    "TruncateBody": wire.TruncateBody,
    "ForkBody": wire.ForkBody,
    "EncodeBody": wire.EncodeBody,
    "DecodeBody": wire.DecodeBody,
}
_STREAM = {
    "type": "object",
    "description": "`packed` and `norms`, or `values` where the kind is float16 or a decoded form was asked for.",
    "properties": {"packed": _TENSOR, "norms": _TENSOR, "values": _TENSOR},
}
_INT = {"type": "integer"}
_ANSWERS: dict[str, Any] = {
    "Appended": {
        "type": "object",
        "properties": {"session": {"type": "string"}, "position": _INT, "tokens": _INT, "length": _INT}
        | {"k": {"$ref": "#/components/schemas/Stream"}, "v": {"$ref": "#/components/schemas/Stream"}},
    },
    "Range": {
        "type": "object",
        "properties": {"start": _INT, "stop": _INT, "length": _INT}
        | {"k": {"$ref": "#/components/schemas/Stream"}, "v": {"$ref": "#/components/schemas/Stream"}},
    },
    "Stream": _STREAM,
    "File": {"type": "string", "format": "binary", "description": "A session as one safetensors file."},
    "Problem": {
        "type": "object",
        "description": "RFC 9457, with further members for some kinds.",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": _INT,
            "detail": {"type": "string"},
            "request_id": {"type": "string", "description": "Also the header X-Request-Id, which each answer has."},
        },
    },
}
# What any call may be refused with, before it is looked at.
_ALWAYS = (401, 403, 408, 421, 422, 431, 503)
# A session as a safetensors file, as body or answer.
_FILE = "File"
# (path, method) -> body, answer, statuses of the problems it may answer besides those.
_OPERATIONS: dict[tuple[str, str], tuple[str | None, str | None, tuple[int, ...]]] = {
    ("/sessions/{id}/kv", "post"): ("AppendBody", "Appended", (400, 409, 413, 415, 503, 507)),
    ("/sessions/{id}/kv", "get"): (None, "Range", (404, 503)),
    ("/sessions/{id}", "put"): ("SessionBody", None, (400, 409, 413, 415, 503, 507)),
    ("/sessions/{id}", "get"): (None, None, (404, 503)),
    ("/sessions", "get"): (None, None, (503,)),
    ("/sessions/{id}", "delete"): (None, None, (404, 503)),
    ("/sessions/{id}/truncate", "post"): ("TruncateBody", None, (400, 404, 413, 415, 503)),
    ("/sessions/{id}/fork", "post"): ("ForkBody", None, (400, 404, 409, 413, 415, 503, 507)),
    ("/sessions/{id}/export", "get"): (None, _FILE, (404, 503)),
    ("/sessions/{id}/import", "post"): (_FILE, None, (400, 409, 413, 415, 503, 507)),
    ("/encode", "post"): ("EncodeBody", "Stream", (400, 413, 415, 503)),
    ("/decode", "post"): ("DecodeBody", "Stream", (400, 413, 415, 503)),
}


def install(app: FastAPI) -> None:
    """Let `/openapi.json` and `/docs` show the whole contract."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _document(app: FastAPI) -> dict[str, Any]:
    base = get_openapi(
        title=app.title, version=app.version, summary=SUMMARY, description=DESCRIPTION, routes=app.routes
    )
    components = base.setdefault("components", {}).setdefault("schemas", {})
    components.update(_schemas())
    for (path, method), (body, answer, statuses) in _OPERATIONS.items():
        operation = base["paths"].setdefault(path, {}).setdefault(method, _append_operation())
        _complete(operation, path, body, answer, statuses)
    return base


def _append_operation() -> dict[str, Any]:
    """The append's own part: it is a plain Starlette route, which FastAPI does not describe."""
    return {
        "summary": "Append",
        "description": "Encode K and V and keep them at the end of the session, creating it if need be.",
        "operationId": "append",
        "responses": {},
    }


def _complete(
    operation: dict[str, Any], path: str, body: str | None, answer: str | None, statuses: tuple[int, ...]
) -> None:
    if "{id}" in path:
        pattern = {"type": "string", "pattern": r"^(?!\.{1,2}$)[A-Za-z0-9_.:-]{1,128}$"}
        others = [p for p in operation.get("parameters", []) if p["name"] != "id"]
        operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": pattern}, *others]
    if body:
        operation["requestBody"] = {"required": body != "SessionBody", "content": _content(body)}
        if body in ("SessionBody", "TruncateBody", "ForkBody"):
            operation["requestBody"]["content"][JSON] = {"schema": {"$ref": f"#/components/schemas/{body}"}}
    if answer:
        operation["responses"]["200"] = {"description": "Done", "content": _content(answer)}
    if body in ("AppendBody", "SessionBody"):
        operation["responses"]["201"] = operation["responses"].get("200", {}) | {"description": "Created"}
    for status in (*statuses, *_ALWAYS):
        content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        operation["responses"][str(status)] = {"description": _titles(status), "content": content}


def _content(name: str) -> dict[str, Any]:
    """A body or an answer in its content type."""
    schema = {"$ref": f"#/components/schemas/{name}"}
    if name == _FILE:
        return {OCTETS: {"schema": schema}}
    return {MSGPACK: {"schema": schema} | ({"examples": _examples(name)} if name in _BODIES else {})}


def _titles(status: int) -> str:
    kinds, titles = [ServiceError], []
    while kinds:
        kind = kinds.pop(0)
        kinds += kind.__subclasses__()
        if kind.status == status and "slug" in vars(kind):
            titles.append(f"{kind.title} (`{kind.slug}`)")
    return "; ".join(titles)


def _schemas() -> dict[str, Any]:
    def schema_of(kind: type) -> dict[str, Any]:
        if kind is memoryview:
            return {"type": "string", "format": "binary", "description": "msgpack bin"}
        raise NotImplementedError(kind)

    _, components = msgspec.json.schema_components(
        tuple(_BODIES.values()), schema_hook=schema_of, ref_template="#/components/schemas/{name}"
    )
    return components | _ANSWERS


def _examples(body: str) -> dict[str, Any]:
    x = np.linspace(-1, 1, 64, dtype=np.float16)
    one_token = wire.tensor(x.reshape(1, 1, 64))
    packed = {"dtype": "uint8", "shape": [1, 32], "data": np.zeros((1, 32), np.uint8)}
    norms = {"dtype": "float32", "shape": [1, 1], "data": np.ones((1, 1), np.float32)}
    values: dict[str, tuple[str, dict[str, Any]]] = {
        "AppendBody": ("One token of one layer and head", {"k": one_token, "v": one_token, "position": 0}),
        "SessionBody": (
            "A model's shape",
            {"layers": 32, "kv_heads": 8, "head_dim": 128, "codec": {"bits": 4}},
        ),
        "TruncateBody": ("Forget all but 100 tokens", {"length": 100}),
        "ForkBody": ("A second session of the first 100 tokens", {"id": "chat-1b", "length": 100}),
        "EncodeBody": ("Two vectors at 6 bits", {"x": wire.tensor(np.tile(x, (2, 1))), "codec": {"bits": 6}}),
        "DecodeBody": ("One vector of 64", {"packed": packed, "norms": norms, "head_dim": 64}),
    }
    summary, value = values[body]
    encoded = b"".join(wire.encode_pieces(value))
    shown = msgspec.to_builtins(value, enc_hook=lambda array: base64.b64encode(array.tobytes()).decode())
    return {
        "example": {
            "summary": summary,
            "value": shown,
            "x-msgpack-base64": base64.b64encode(encoded).decode(),
        }
    }
