"""The OpenAPI document: FastAPI derives the routes; this module adds bodies, responses and problems."""

from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from hadakv_service.errors import (
    BodyTooLarge,
    Busy,
    CodecMismatch,
    FileCorrupt,
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
    SelfTestFailed,
    ServiceError,
    SessionCorrupt,
    SessionExists,
    SessionNotFound,
    ShapeMismatch,
    ShuttingDown,
    StorageUnavailable,
    Unauthorized,
    UnknownHost,
    UnsupportedMediaType,
    UnsupportedTransferEncoding,
)
from hadakv_service.http.content import JSON, MSGPACK, OCTETS
from hadakv_service.http.openapi import examples, problem_schemas, schemas, snippets
from hadakv_service.http.openapi.groups import PLACES, TAGS
from hadakv_service.http.openapi.schemas import SESSION_ID, Schema, reference

SUMMARY = "Keeps the KV caches of language models compressed, keyed by session."
DESCRIPTION = """
Bodies are msgpack. A tensor is `{"dtype", "shape", "data"}`: C order, little-endian, `data` a msgpack bin. The examples
of this document show bins as base64. `x-msgpack-base64` has the exact bytes to send for each example, as base64.

If the service runs with a token file, every call except `/healthz` and `/readyz` needs a token. This page needs none:
press Authorize to enter one for the calls that you try.
"""

# Errors before a request is routed, and errors of any route.
_CONNECTION = (
    *(MalformedRequest, ForbiddenOrigin, RequestTimeout, UnknownHost, HeadersTooLarge),
    *(UnsupportedTransferEncoding, Busy, ShuttingDown),
)
_ANY = (*_CONNECTION, Unauthorized, InvalidRequest)
_BODY = (MalformedBody, BodyTooLarge, UnsupportedMediaType)
_STORED = (SessionCorrupt, StorageUnavailable)
_SPACE = (InsufficientStorage, QuotaExceeded)
_CONFLICTS = (ShapeMismatch, CodecMismatch, PositionConflict)
# A session as a safetensors file, in a request or a response.
_FILE = "File"
# The metrics, in either of the formats that Prometheus accepts.
_METRICS = "Metrics"
_CONTENT_TYPES = {_FILE: (OCTETS,), _METRICS: ("text/plain", "application/openmetrics-text")}


@dataclass(frozen=True, slots=True)
class Call:
    """The request and responses of one API call.

    Attributes:
        name: the operationId. Client generators derive function names from it.
        responses: schema of the response by status; None for a response without a body.
        problems: the errors that the call may respond with.
        body: schema of the request body.
        json: whether the body may be JSON, and the response is JSON unless msgpack is requested.
        parameters: parameters that FastAPI does not know.
    """

    name: str
    responses: dict[int, str | None]
    problems: tuple[type[ServiceError], ...]
    body: str | None = None
    json: bool = True
    parameters: list[Schema] = field(default_factory=list)


_REQUEST_ID = {
    "description": "The X-Request-Id of the request if it is 1 to 128 of A-Z a-z 0-9 . _ -, else a new id.",
    "schema": {"type": "string"},
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "With `return=minimal` the response has neither `k` nor `v`.",
    "schema": {"type": "string", "examples": ["return=minimal"]},
}
_ID = {"name": "id", "in": "path", "required": True, "schema": SESSION_ID, "example": examples.SESSION}
CALLS = {
    ("/sessions/{id}/kv", "post"): Call(
        "appendTokens",
        {200: "StoredAppend", 201: "StoredAppend"},
        (*_ANY, *_BODY, *_STORED, *_CONFLICTS, NonFinite, *_SPACE),
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
        (*_ANY, *_BODY, *_STORED, SessionExists, *_SPACE),
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
        (*_ANY, *_BODY, *_STORED, SessionNotFound, SessionExists, *_SPACE),
        "ForkBody",
    ),
    ("/sessions/{id}/export", "get"): Call("exportSession", {200: _FILE}, (*_ANY, *_STORED, SessionNotFound)),
    ("/sessions/{id}/import", "post"): Call(
        "importSession", {201: "SessionInfo"}, (*_ANY, *_BODY, FileCorrupt, *_STORED, SessionExists, *_SPACE), _FILE
    ),
    ("/encode", "post"): Call("encode", {200: "Encoded"}, (*_ANY, *_BODY, NonFinite), "EncodeBody", json=False),
    ("/decode", "post"): Call("decode", {200: "Values"}, (*_ANY, *_BODY, ResponseTooLarge), "DecodeBody", json=False),
    ("/metrics", "get"): Call("metrics", {200: _METRICS}, _ANY),
    ("/healthz", "get"): Call("healthz", {200: "Health"}, (*_CONNECTION, InvalidRequest)),
    ("/readyz", "get"): Call(
        "readyz", {200: "Readiness"}, (*_CONNECTION, InvalidRequest, SelfTestFailed, StorageUnavailable)
    ),
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
    base["tags"] = TAGS
    for (path, method), call in CALLS.items():
        operation = base["paths"].setdefault(path, {}).setdefault(method, _append_operation())
        _add_details(operation, path, call)
    paths = {path: dict(sorted(item.items(), key=_place)) for path, item in base["paths"].items()}
    base["paths"] = dict(sorted(paths.items(), key=lambda path: min(map(_place, path[1].items()))))
    return base


def _place(operation: tuple[str, dict[str, Any]]) -> int:
    """Return the place of a method and its operation on the page."""
    return list(PLACES).index(operation[1]["operationId"])


def _append_operation() -> dict[str, Any]:
    """Return the description of the append, a plain ASGI endpoint that FastAPI does not describe."""
    return {"description": "Encode K and V and store them at the end of the session, which is created if needed."}


def _add_details(operation: dict[str, Any], path: str, call: Call) -> None:
    """Add the parameters, body, responses and security of a call to its operation."""
    tag, summary = PLACES[call.name]
    operation |= {"operationId": call.name, "tags": [tag], "summary": summary}
    operation["description"] = operation.get("description", "") + snippets.description(call.name)
    if not snippets.is_executable(call.name):
        operation["x-executable"] = False
    parameters = [p for p in operation.get("parameters", []) if p["name"] != "id"] + call.parameters
    if "{id}" in path:
        parameters.insert(0, _ID)
    if parameters:
        operation["parameters"] = parameters
    if call.body:
        operation["requestBody"] = {"required": call.body != "SessionBody", "content": _body(call)}
    success = {str(status): _response(status, schema, json=call.json) for status, schema in call.responses.items()}
    operation["responses"] = success | problem_schemas.responses(call.problems)
    for response in operation["responses"].values():
        response.setdefault("headers", {})["X-Request-Id"] = {"$ref": "#/components/headers/X-Request-Id"}
    # Two alternatives: the service's settings decide whether a token is needed.
    operation["security"] = [{}, {"token": []}] if Unauthorized in call.problems else []


def _body(call: Call) -> dict[str, Any]:
    """Return the request body in each of its content types."""
    assert call.body is not None
    if call.body == _FILE:
        return {OCTETS: {"schema": reference(_FILE)}}
    # The page offers the first content type, and it can send JSON.
    return {
        kind: {
            "schema": reference(call.body),
            "examples": examples.of_request(call.body, msgpack=kind == MSGPACK),
        }
        for kind in ((JSON, MSGPACK) if call.json else (MSGPACK,))
    }


def _response(status: int, schema: str | None, *, json: bool) -> dict[str, Any]:
    """Return a success response, with a body in each of its content types if there is a schema."""
    description = "Created" if status == 201 else "Done"
    if schema is None:
        return {"description": description}
    types = _CONTENT_TYPES.get(schema, (JSON, MSGPACK) if json else (MSGPACK,))
    content = {"schema": reference(schema), **examples.of_response(schema)}
    return {"description": description, "content": dict.fromkeys(types, content)}
