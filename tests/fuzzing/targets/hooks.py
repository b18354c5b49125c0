"""Hooks for schemathesis: msgpack, tensors that fit together, and a log of responses.

schemathesis loads the module that `SCHEMATHESIS_HOOKS` names. For each request the file that `HADAKV_FUZZ_LOG` names
gets a line with the status and the operation.
"""

import base64
import binascii
import os
import random
from typing import Any

import msgpack
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import (
    Case,
    CheckContext,
    DeserializationContext,
    GenerationMode,
    HookContext,
    Response,
    SerializationContext,
)
from schemathesis.transport.serialization import Binary

from fuzzing import values
from fuzzing.deleted_sessions import DeletedSessions
from support.contract import JSON, MSGPACK, Json
from support.inputs.session_files import OCTETS

LOG = open(os.environ["HADAKV_FUZZ_LOG"], "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - open until the end
DELETED = DeletedSessions()


@schemathesis.serializer(MSGPACK)
def to_msgpack(_: SerializationContext, value: Any) -> bytes:
    """Pack a generated value. "data" becomes bytes, and integers are clipped to the range of msgpack."""
    return bytes(msgpack.packb(_packable(value), unicode_errors="surrogatepass"))


def _packable(value: Any, key: str = "") -> Any:
    match value:
        case Binary():
            return value.data
        case str() if key == "data":
            return _from_base64(value)
        case dict():
            return {name: _packable(part, name) for name, part in value.items()}
        case list():
            return [_packable(part) for part in value]
        case int() if not isinstance(value, bool):
            return min(max(value, -(1 << 63)), (1 << 64) - 1)
    return value


def _from_base64(shown: str) -> Any:
    """Decode the base64 of an example in the document; other strings stay as they are."""
    try:
        return base64.b64decode(shown, validate=True)
    except (binascii.Error, ValueError):
        return shown


# The schema says nothing about octet streams.
schemathesis.openapi.media_type(
    OCTETS, st.integers(0, 1 << 32).map(lambda seed: values.exported_session(random.Random(seed)))
)


@schemathesis.deserializer(MSGPACK)
def from_msgpack(_: DeserializationContext, response: Response) -> Any:
    """Unpack a response. Bytes become strings, as in the schema."""
    return _readable(msgpack.unpackb(response.content))


def _readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, dict):
        return {name: _readable(part) for name, part in value.items()}
    return [_readable(part) for part in value] if isinstance(value, list) else value


@schemathesis.hook
def before_load_schema(_: HookContext, raw_schema: Json) -> None:
    """Forbid keys that the document does not name."""
    for schema in raw_schema["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)


@schemathesis.hook
def map_case(_: HookContext, case: Case) -> Case:
    """Change a case that is valid by the schema so that it is mostly meaningful."""
    rng = random.Random(f"{case.method} {case.path} {case.path_parameters} {case.query} {case.body!r}")
    if JSON not in _response_types(case) or rng.random() < 0.5:
        case.headers["Accept"] = MSGPACK
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE or rng.random() < 0.2:
        return case
    if "id" in case.path_parameters:
        case.path_parameters["id"] = rng.choice(values.SESSIONS)
    case.query.update({name: rng.randint(0, 300) for name in ("start", "stop") if name in case.query})
    if isinstance(case.body, dict):
        case.body = _to_base64(_meaningful(rng, case, case.body))
    return case


def _to_base64(value: Any) -> Any:
    """Return the value with bytes as base64, as in the document's examples."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return {name: _to_base64(part) for name, part in value.items()} if isinstance(value, dict) else value


def _response_types(case: Case) -> Json:
    responses: Json = case.operation.definition.raw["responses"]
    return {kind: None for status in ("200", "201") for kind in responses.get(status, {}).get("content", {})}


def _meaningful(rng: random.Random, case: Case, body: Json) -> Json:
    match case.path.rpartition("/")[2]:
        case "kv":
            kept = {name: body[name] for name in ("codec", "layer", "position") if name in body and rng.random() < 0.2}
            return kept | values.append(rng, case.path_parameters["id"])
        case "truncate":
            return {"length": rng.randint(0, 300)}
        case "fork":
            shortened = {"length": rng.randint(0, 300)} if rng.random() < 0.5 else {}
            return {"id": rng.choice(values.SESSIONS), **shortened}
        case "encode":
            return body | {"x": values.vectors(rng)}
        case "decode":
            kept = {name: body[name] for name in ("codec", "form", "head_dim") if name in body}
            return kept | values.encoded(rng, body.get("codec", {}), body["head_dim"])
    return body


@schemathesis.hook
def after_call(_: HookContext, case: Case, response: Response) -> None:
    """Log a response."""
    LOG.write(f"{response.status_code} {case.method} {case.path}\n")


@schemathesis.check
def deleted_stays_deleted(_: CheckContext, response: Response, case: Case) -> None:
    """Fail if a deleted session is found. schemathesis' own check does not know that an append creates a session."""
    if "id" in case.path_parameters:
        session = str(case.path_parameters["id"])
        DELETED.record((case.method.upper(), case.path), session, case.body, response.status_code)


@schemathesis.hook
def after_network_error(_: HookContext, case: Case, request: requests.PreparedRequest) -> None:
    """Log a request without a response."""
    LOG.write(f"none {case.method} {request.url}\n")
