"""The OpenAPI document: what FastAPI derives from the routes, and what only we know: bodies, answers and problems."""

import base64
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from hadakv_kernels import BITS, HEAD_DIMS
from hadakv_kernels.codec import CHOICES
from hadakv_service import answers, problem_schemas, wire
from hadakv_service.errors import (
    AnswerTooLarge,
    BodyTooLarge,
    Busy,
    CodecMismatch,
    InsufficientStorage,
    InvalidRequest,
    MalformedBody,
    NonFinite,
    PositionConflict,
    SessionDamaged,
    SessionExists,
    SessionNotFound,
    ShapeMismatch,
    TierUnavailable,
    Unauthorized,
    UnsupportedMediaType,
)
from hadakv_service.media import JSON, MSGPACK
from hadakv_service.session import MAX_LAYERS

SUMMARY = "Keeps the KV caches of language models compressed, keyed by session."
DESCRIPTION = """
Bodies are msgpack. A tensor is `{"dtype", "shape", "data"}`, C order, little-endian, `data` a msgpack bin. In this
document's examples bins are shown as base64; each example also stands as `x-msgpack-base64`, the very bytes to send.

Every call but the probes needs a token where the service runs with a token file, and none where it does not.
"""

Schema = dict[str, Any]
_SESSION_ID = {"type": "string", "pattern": r"^(?!\.{1,2}$)[A-Za-z0-9_.:-]{1,128}$"}
_REF = "#/components/schemas/{name}"
_BODIES = (wire.AppendBody, wire.SessionBody, wire.TruncateBody, wire.ForkBody, wire.EncodeBody, wire.DecodeBody)
_ANSWERS = (
    *(answers.Appended, answers.Range, answers.SessionInfo, answers.SessionList, answers.Codecs),
    *(answers.Packed, answers.Values, answers.Encoded, answers.Health, answers.Readiness),
)
_ANY = (Unauthorized, InvalidRequest, Busy)
_BODY = (MalformedBody, BodyTooLarge, UnsupportedMediaType)
_STORED = (SessionDamaged, TierUnavailable)
_CONFLICTS = (ShapeMismatch, CodecMismatch, PositionConflict)


@dataclass(frozen=True, slots=True)
class Call:
    """What one call reads and answers.

    Attributes:
        name: the operationId, from which programs that write clients make a function's name.
        answers: the answer's schema by status; None for an answer without a body.
        problems: the kinds of problem it may answer.
        body: the schema of the request's body.
        json: whether the body may be JSON, and the answer is unless msgpack is asked for.
    """

    name: str
    answers: dict[int, str | None]
    problems: tuple[problem_schemas.Kind, ...]
    body: str | None = None
    json: bool = True
    parameters: list[Schema] = field(default_factory=list)


_PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "With `return=minimal` the answer has neither `k` nor `v`.",
    "schema": {"type": "string", "examples": ["return=minimal"]},
}
CALLS = {
    ("/sessions/{id}/kv", "post"): Call(
        "append",
        {200: "Appended", 201: "Appended"},
        (*_ANY, *_BODY, *_STORED, *_CONFLICTS, NonFinite, InsufficientStorage),
        "AppendBody",
        json=False,
        parameters=[_PREFER],
    ),
    ("/sessions/{id}/kv", "get"): Call(
        "read", {200: "Range"}, (*_ANY, *_STORED, SessionNotFound, AnswerTooLarge), json=False
    ),
    ("/sessions/{id}", "put"): Call(
        "create",
        {200: "SessionInfo", 201: "SessionInfo"},
        (*_ANY, *_BODY, *_STORED, SessionExists, InsufficientStorage),
        "SessionBody",
    ),
    ("/sessions/{id}", "get"): Call("show", {200: "SessionInfo"}, (*_ANY, *_STORED, SessionNotFound)),
    ("/sessions/{id}", "delete"): Call("delete", {204: None}, (*_ANY, TierUnavailable, SessionNotFound)),
    ("/sessions", "get"): Call("list", {200: "SessionList"}, (*_ANY, TierUnavailable)),
    ("/sessions/{id}/truncate", "post"): Call(
        "truncate",
        {200: "SessionInfo"},
        (*_ANY, *_BODY, *_STORED, SessionNotFound, InsufficientStorage),
        "TruncateBody",
    ),
    ("/sessions/{id}/fork", "post"): Call(
        "fork",
        {201: "SessionInfo"},
        (*_ANY, *_BODY, *_STORED, SessionNotFound, SessionExists, InsufficientStorage),
        "ForkBody",
    ),
    ("/encode", "post"): Call("encode", {200: "Encoded"}, (*_ANY, *_BODY, NonFinite), "EncodeBody", json=False),
    ("/decode", "post"): Call("decode", {200: "Values"}, (*_ANY, *_BODY, AnswerTooLarge), "DecodeBody", json=False),
    ("/healthz", "get"): Call("healthz", {200: "Health"}, ()),
    ("/readyz", "get"): Call("readyz", {200: "Readiness"}, (Busy, TierUnavailable)),
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
    base["components"] = {
        "schemas": _schemas(),
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
    }
    for (path, method), call in CALLS.items():
        operation = base["paths"].setdefault(path, {}).setdefault(method, _append_operation())
        _complete(operation, path, call)
    return base


def _append_operation() -> dict[str, Any]:
    """The append's own part: it is a plain Starlette route, which FastAPI does not describe."""
    return {
        "summary": "Append",
        "description": "Encode K and V and keep them at the end of the session, creating it if need be.",
    }


def _complete(operation: dict[str, Any], path: str, call: Call) -> None:
    operation["operationId"] = call.name
    parameters = [p for p in operation.get("parameters", []) if p["name"] != "id"] + call.parameters
    if "{id}" in path:
        parameters.insert(0, {"name": "id", "in": "path", "required": True, "schema": _SESSION_ID})
    if parameters:
        operation["parameters"] = parameters
    if call.body:
        content = {MSGPACK: {"schema": _reference(call.body), "examples": _examples(call.body)}}
        if call.json:
            content[JSON] = {"schema": _reference(call.body)}
        operation["requestBody"] = {"required": call.body != "SessionBody", "content": content}
    told = {str(status): _answer(status, answer, json=call.json) for status, answer in call.answers.items()}
    operation["responses"] = told | problem_schemas.responses(call.problems)
    # Nothing, or a token: which of the two is up to the service's settings.
    operation["security"] = [{}, {"token": []}] if Unauthorized in call.problems else []


def _answer(status: int, answer: str | None, *, json: bool) -> dict[str, Any]:
    description = "Created" if status == 201 else "Done"
    if answer is None:
        return {"description": description}
    kinds = (JSON, MSGPACK) if json else (MSGPACK,)
    return {"description": description, "content": {kind: {"schema": _reference(answer)} for kind in kinds}}


def _reference(name: str) -> Schema:
    return {"$ref": _REF.format(name=name)}


def _schemas() -> dict[str, Schema]:
    _, made = msgspec.json.schema_components((*_BODIES, *_ANSWERS), ref_template=_REF)
    made["ForkBody"]["properties"]["id"] = _SESSION_ID
    made["SessionBody"]["properties"]["layers"]["anyOf"][0]["maximum"] = MAX_LAYERS
    made["Tensor"]["properties"]["data"] = {"type": "string", "format": "binary", "description": "msgpack bin"}
    for name in ("CodecOptions", "CodecPair"):
        made[name]["properties"] |= {
            option: {"anyOf": [schema, {"type": "null"}], "default": None} for option, schema in _codec().items()
        }
    made["DecodeBody"]["properties"]["head_dim"] = {"enum": list(HEAD_DIMS)}
    made["SessionBody"]["properties"]["head_dim"] = {"enum": [*HEAD_DIMS, None], "default": None}
    made["Stream"] = {"oneOf": [_reference("Packed"), _reference("Values")]}
    made["Codec"] = {
        "type": "object",
        "description": "A codec with all of its options; the ablation factor only where it is set.",
        "properties": _codec(),
        "required": [option for option in _codec() if option != "d512_scale"],
    }
    return {name: _plain(schema) for name, schema in made.items()} | problem_schemas.schemas()


def _codec() -> dict[str, Schema]:
    """The schema of each option of a codec."""
    choices = {option: {"enum": list(allowed)} for option, allowed in CHOICES.items()}
    return {"bits": {"enum": list(BITS)}, **choices, "d512_scale": {"type": "number", "exclusiveMinimum": 0}}


def _plain(schema: Any) -> Any:
    """The same schema, where a reference says all there is to say."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("$ref"), str):
        return {"$ref": schema["$ref"]}
    return {key: _plain(part) for key, part in schema.items()}


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
