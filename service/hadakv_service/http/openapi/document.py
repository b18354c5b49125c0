"""The OpenAPI document: what FastAPI derives from the routes, and what only we know: bodies, answers and problems."""

from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from hadakv_service.errors import (
    BodyTooLarge,
    Busy,
    CodecMismatch,
    ForbiddenOrigin,
    HeadersTooLarge,
    InsufficientStorage,
    InvalidRequest,
    MalformedBody,
    MalformedRequest,
    NonFinite,
    PositionConflict,
    QuotaExceeded,
    RequestTimeout,
    ResponseTooLarge,
    SessionCorrupt,
    SessionExists,
    SessionNotFound,
    ShapeMismatch,
    ShuttingDown,
    StorageUnavailable,
    Unauthorized,
    UnknownHost,
    UnsupportedMediaType,
)
from hadakv_service.http.content import JSON, MSGPACK, OCTETS
from hadakv_service.http.openapi import problem_schemas, schemas
from hadakv_service.http.openapi.schemas import SESSION_ID, Schema, reference

SUMMARY = "Keeps the KV caches of language models compressed, keyed by session."
DESCRIPTION = """
Bodies are msgpack. A tensor is `{"dtype", "shape", "data"}`, C order, little-endian, `data` a msgpack bin. In this
document's examples bins are shown as base64; each example also stands as `x-msgpack-base64`, the very bytes to send.

Every call but the probes needs a token where the service runs with a token file, and none where it does not.
"""

# Before a request is looked at, and after.
_CONNECTION = (MalformedRequest, ForbiddenOrigin, RequestTimeout, UnknownHost, HeadersTooLarge, Busy, ShuttingDown)
_ANY = (*_CONNECTION, Unauthorized, InvalidRequest)
_BODY = (MalformedBody, BodyTooLarge, UnsupportedMediaType)
_STORED = (SessionCorrupt, StorageUnavailable)
_ROOM = (InsufficientStorage, QuotaExceeded)
_CONFLICTS = (ShapeMismatch, CodecMismatch, PositionConflict)
# A session as a safetensors file, as body or answer.
_FILE = "File"
# What Prometheus reads, in either of the forms that it asks for.
_METRICS = "Metrics"
_KINDS = {_FILE: (OCTETS,), _METRICS: ("text/plain", "application/openmetrics-text")}


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


_REQUEST_ID = {
    "description": "The request's own, if it had one of 1 to 128 of A-Z a-z 0-9 . _ -, else a new one.",
    "schema": {"type": "string"},
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "With `return=minimal` the answer has neither `k` nor `v`.",
    "schema": {"type": "string", "examples": ["return=minimal"]},
}
CALLS = {
    ("/sessions/{id}/kv", "post"): Call(
        "appendTokens",
        {200: "StoredAppend", 201: "StoredAppend"},
        (*_ANY, *_BODY, *_STORED, *_CONFLICTS, NonFinite, *_ROOM),
        "AppendBody",
        json=False,
        parameters=[_PREFER],
    ),
    ("/sessions/{id}/kv", "get"): Call(
        "readTokens", {200: "Range"}, (*_ANY, *_STORED, SessionNotFound, ResponseTooLarge), json=False
    ),
    ("/sessions/{id}", "put"): Call(
        "createSession",
        {200: "SessionInfo", 201: "SessionInfo"},
        (*_ANY, *_BODY, *_STORED, SessionExists, *_ROOM),
        "SessionBody",
    ),
    ("/sessions/{id}", "get"): Call("getSession", {200: "SessionInfo"}, (*_ANY, *_STORED, SessionNotFound)),
    ("/sessions/{id}", "delete"): Call("deleteSession", {204: None}, (*_ANY, StorageUnavailable, SessionNotFound)),
    ("/sessions", "get"): Call("listSessions", {200: "SessionList"}, (*_ANY, StorageUnavailable)),
    ("/sessions/{id}/truncate", "post"): Call(
        "truncateSession",
        {200: "SessionInfo"},
        (*_ANY, *_BODY, *_STORED, SessionNotFound, InsufficientStorage),
        "TruncateBody",
    ),
    ("/sessions/{id}/fork", "post"): Call(
        "forkSession",
        {201: "SessionInfo"},
        (*_ANY, *_BODY, *_STORED, SessionNotFound, SessionExists, *_ROOM),
        "ForkBody",
    ),
    ("/sessions/{id}/export", "get"): Call("exportSession", {200: _FILE}, (*_ANY, *_STORED, SessionNotFound)),
    ("/sessions/{id}/import", "post"): Call(
        "importSession", {201: "SessionInfo"}, (*_ANY, *_BODY, *_STORED, SessionExists, *_ROOM), _FILE
    ),
    ("/encode", "post"): Call("encode", {200: "Encoded"}, (*_ANY, *_BODY, NonFinite), "EncodeBody", json=False),
    ("/decode", "post"): Call("decode", {200: "Values"}, (*_ANY, *_BODY, ResponseTooLarge), "DecodeBody", json=False),
    ("/metrics", "get"): Call("metrics", {200: _METRICS}, (*_CONNECTION, Unauthorized)),
    ("/healthz", "get"): Call("healthz", {200: "Health"}, _CONNECTION),
    ("/readyz", "get"): Call("readyz", {200: "Readiness"}, (*_CONNECTION, StorageUnavailable)),
}


def extend_openapi(app: FastAPI) -> None:
    """Make `/openapi.json` and `/docs` show the whole contract."""

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
        "schemas": schemas.schemas() | problem_schemas.schemas(),
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        "headers": {"X-Request-Id": _REQUEST_ID},
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
        parameters.insert(0, {"name": "id", "in": "path", "required": True, "schema": SESSION_ID})
    if parameters:
        operation["parameters"] = parameters
    if call.body:
        operation["requestBody"] = {"required": call.body != "SessionBody", "content": _body(call)}
    told = {str(status): _answer(status, answer, json=call.json) for status, answer in call.answers.items()}
    operation["responses"] = told | problem_schemas.responses(call.problems)
    for response in operation["responses"].values():
        response.setdefault("headers", {})["X-Request-Id"] = {"$ref": "#/components/headers/X-Request-Id"}
    # Nothing, or a token: which of the two is up to the service's settings.
    operation["security"] = [{}, {"token": []}] if Unauthorized in call.problems else []


def _body(call: Call) -> dict[str, Any]:
    """The body of a request in each of its content types."""
    assert call.body is not None
    if call.body == _FILE:
        return {OCTETS: {"schema": reference(_FILE)}}
    content = {MSGPACK: {"schema": reference(call.body), "examples": schemas.examples(call.body)}}
    return content | ({JSON: {"schema": reference(call.body)}} if call.json else {})


def _answer(status: int, answer: str | None, *, json: bool) -> dict[str, Any]:
    description = "Created" if status == 201 else "Done"
    if answer is None:
        return {"description": description}
    kinds = _KINDS.get(answer, (JSON, MSGPACK) if json else (MSGPACK,))
    return {"description": description, "content": {kind: {"schema": reference(answer)} for kind in kinds}}
