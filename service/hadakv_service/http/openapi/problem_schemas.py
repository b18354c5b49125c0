"""Problem documents as JSON schemas: one for each kind of error, with the members that it has beside the usual ones."""

from collections.abc import Iterator, Sequence
from typing import Any

from hadakv_service import errors
from hadakv_service.errors import ServiceError
from hadakv_service.problem_details import TYPE_PREFIX

Schema = dict[str, Any]
Kind = type[ServiceError]

PROBLEM_JSON = "application/problem+json"
_STRING: Schema = {"type": "string"}
_NATURAL: Schema = {"type": "integer", "minimum": 0}
_REASON = {"type": "object", "properties": {"field": _STRING, "reason": _STRING}, "required": ["field", "reason"]}
_ERRORS: Schema = {"type": "array", "items": _REASON, "minItems": 1}
# Members of each kind that are always there, and those that may be.
_MEMBERS: dict[Kind, tuple[Schema, Schema]] = {
    errors.SessionNotFound: ({"session": _STRING}, {}),
    errors.ShapeMismatch: ({}, {"kv_heads": _NATURAL, "head_dim": _NATURAL, "layers": _NATURAL}),
    errors.CodecMismatch: ({"codec": {"$ref": "#/components/schemas/Codecs"}}, {}),
    errors.SessionExists: ({"field": _STRING}, {}),
    errors.PositionConflict: ({"length": _NATURAL}, {}),
    errors.BodyTooLarge: ({"limit": _NATURAL}, {}),
    errors.UnknownHost: ({"host": _STRING}, {}),
    errors.InvalidRequest: ({"errors": _ERRORS}, {}),
    errors.ResponseTooLarge: ({"errors": _ERRORS, "limit": _NATURAL}, {}),
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
# Headers that every answer of a status has.
_HEADERS: dict[int, dict[str, Schema]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": _STRING}},
    503: {"Retry-After": {"required": True, "schema": _NATURAL, "description": "Seconds."}},
}


def kinds(base: Kind = ServiceError) -> Iterator[Kind]:
    """Every kind of error that has a slug, the tree from top to bottom."""
    for kind in base.__subclasses__():
        if "slug" in vars(kind):
            yield kind
        yield from kinds(kind)


def schema_name(kind: Kind) -> str:
    """The name of a kind's schema."""
    return f"{kind.__name__}Problem"


def schemas() -> dict[str, Schema]:
    """The schema of each kind by its name."""
    return {schema_name(kind): _schema(kind) for kind in kinds()}


def _schema(kind: Kind) -> Schema:
    always, further = _MEMBERS.get(kind, ({}, {}))
    usual: Schema = {
        "type": {**_STRING, "const": TYPE_PREFIX + kind.slug},
        "title": {**_STRING, "const": kind.title},
        "status": {"type": "integer", "const": kind.status},
        "detail": {**_STRING, "description": "This occurrence, for people."},
        "request_id": {**_STRING, "description": "As in the header X-Request-Id."},
    }
    return {
        "type": "object",
        "description": (kind.__doc__ or "").partition("\n")[0],
        "properties": usual | always | further,
        "required": [*usual, *always],
    }


def responses(possible: Sequence[Kind]) -> dict[str, Any]:
    """The OpenAPI responses of a call that may end in any of these kinds, by status."""
    by_status: dict[int, list[Kind]] = {}
    for kind in possible:
        by_status.setdefault(kind.status, []).append(kind)
    return {str(status): _response(status, by_status[status]) for status in sorted(by_status)}


def _response(status: int, possible: Sequence[Kind]) -> dict[str, Any]:
    references = {TYPE_PREFIX + kind.slug: f"#/components/schemas/{schema_name(kind)}" for kind in possible}
    schema: Schema = {"$ref": next(iter(references.values()))}
    if len(references) > 1:
        schema = {
            "oneOf": [{"$ref": reference} for reference in references.values()],
            "discriminator": {"propertyName": "type", "mapping": references},
        }
    response: dict[str, Any] = {
        "description": "; ".join(f"{kind.title} (`{kind.slug}`)" for kind in possible),
        "content": {PROBLEM_JSON: {"schema": schema}},
    }
    return response | ({"headers": _HEADERS[status]} if status in _HEADERS else {})
