"""JSON schemas of problem documents, one for each error class."""

from collections.abc import Iterator, Sequence
from typing import Any

from hadakv_service import errors
from hadakv_service.errors import ServiceError
from hadakv_service.problem_details import TYPE_PREFIX

Schema = dict[str, Any]
ErrorClass = type[ServiceError]

PROBLEM_JSON = "application/problem+json"
_STRING: Schema = {"type": "string"}
_NATURAL: Schema = {"type": "integer", "minimum": 0}
_FIELD = {**_STRING, "examples": ["k"]}
_REASON = {
    "type": "object",
    "properties": {"field": _FIELD, "reason": {**_STRING, "examples": ["is missing"]}},
    "required": ["field", "reason"],
}
_ERRORS: Schema = {"type": "array", "items": _REASON, "minItems": 1}
_REQUEST_ID = "cb63747a32066792-2af8"
# Members of each class besides the common ones: those that are always present, and optional ones.
_MEMBERS: dict[ErrorClass, tuple[Schema, Schema]] = {
    errors.SessionNotFound: ({"session": _STRING}, {}),
    errors.ShapeMismatch: ({}, {"kv_heads": _NATURAL, "head_dim": _NATURAL, "layers": _NATURAL}),
    errors.CodecMismatch: ({"codec": {"$ref": "#/components/schemas/Codecs"}}, {}),
    errors.SessionExists: ({"field": _STRING}, {}),
    errors.PositionConflict: ({"length": _NATURAL}, {}),
    errors.BodyTooLarge: ({"limit": _NATURAL}, {}),
    errors.UnknownHost: ({"host": _STRING}, {}),
    errors.InvalidRequest: ({"errors": _ERRORS}, {}),
    errors.ResponseTooLarge: (
        {"errors": _ERRORS, "limit": _NATURAL},
        {
            **dict.fromkeys(("tokens", "start", "stop", "length", "window"), _NATURAL),
            "layers": {"type": "array", "items": _NATURAL},
        },
    ),
    errors.NonFinite: (
        {"errors": _ERRORS, "stream": {"enum": ["k", "v", "x"]}},
        {"layer": _NATURAL, "head": _NATURAL, "token": _NATURAL, "row": _NATURAL},
    ),
    errors.HeadersTooLarge: ({"limit": _NATURAL}, {}),
    errors.QuotaExceeded: (
        {"resource": {"enum": ["bytes", "sessions"]}, "needed": _NATURAL, "quota": _NATURAL},
        {},
    ),
    errors.InsufficientStorage: ({}, {"needed": _NATURAL, "budget": _NATURAL}),
}
# Headers that every response of a status has.
_HEADERS: dict[int, dict[str, Schema]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": _STRING}},
    503: {"Retry-After": {"required": True, "schema": _NATURAL, "description": "Seconds."}},
}


def error_classes(base: ErrorClass = ServiceError) -> Iterator[ErrorClass]:
    """Yield every error class that has its own slug, parents before children."""
    for error in base.__subclasses__():
        if "slug" in vars(error):
            yield error
        yield from error_classes(error)


def schema_name(error: ErrorClass) -> str:
    """Return the schema name of an error class."""
    return f"{error.__name__}Problem"


def schemas() -> dict[str, Schema]:
    """Return the schema of each error class by its name."""
    return {schema_name(error): _schema(error) for error in error_classes()}


def _schema(error: ErrorClass) -> Schema:
    required, optional = _MEMBERS.get(error, ({}, {}))
    description = (error.__doc__ or "").partition("\n")[0]
    common: Schema = {
        "type": {**_STRING, "const": TYPE_PREFIX + error.slug},
        "title": {**_STRING, "const": error.title},
        "status": {"type": "integer", "const": error.status},
        "detail": {
            **_STRING,
            "description": "A description of this occurrence, for people.",
            "examples": [description],
        },
        "request_id": {**_STRING, "description": "The same as the header X-Request-Id.", "examples": [_REQUEST_ID]},
    }
    return {
        "type": "object",
        "description": description,
        "properties": common | required | optional,
        "required": [*common, *required],
    }


def responses(errors: Sequence[ErrorClass]) -> dict[str, Any]:
    """Return the OpenAPI responses, by status, of a call that may raise any of these errors."""
    by_status: dict[int, list[ErrorClass]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {str(status): _response(status, by_status[status]) for status in sorted(by_status)}


def _response(status: int, errors: Sequence[ErrorClass]) -> dict[str, Any]:
    references = {TYPE_PREFIX + error.slug: f"#/components/schemas/{schema_name(error)}" for error in errors}
    schema: Schema = {"$ref": next(iter(references.values()))}
    if len(references) > 1:
        schema = {
            "oneOf": [{"$ref": reference} for reference in references.values()],
            "discriminator": {"propertyName": "type", "mapping": references},
        }
    response: dict[str, Any] = {
        "description": "; ".join(f"{error.title} (`{error.slug}`)" for error in errors),
        "content": {PROBLEM_JSON: {"schema": schema}},
    }
    return response | ({"headers": _HEADERS[status]} if status in _HEADERS else {})
