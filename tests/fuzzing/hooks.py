"""What schemathesis is to know of this service: msgpack, tensors that fit together, and where to put its counts.

Loaded by schemathesis, by the name that `SCHEMATHESIS_HOOKS` has. With each call the file that `HADAKV_FUZZ_LOG` names
gets a line: the status and the call.
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
from fuzzing.deleted_sessions import Gone
from support.contract import JSON, MSGPACK, Json
from support.session_files import OCTETS

LOG = open(os.environ["HADAKV_FUZZ_LOG"], "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - open until the end
GONE = Gone()


@schemathesis.serializer(MSGPACK)
def to_msgpack(_: SerializationContext, value: Any) -> bytes:
    """A generated value as msgpack, where "data" is bytes; what msgpack has no numbers for becomes the next it has."""
    return bytes(msgpack.packb(_packable(value), unicode_errors="surrogatepass"))


def _packable(value: Any, key: str = "") -> Any:
    match value:
        case Binary():
            return value.data
        case str() if key == "data":
            return _unshown(value)
        case dict():
            return {name: _packable(part, name) for name, part in value.items()}
        case list():
            return [_packable(part) for part in value]
        case int() if not isinstance(value, bool):
            return min(max(value, -(1 << 63)), (1 << 64) - 1)
    return value


def _unshown(shown: str) -> Any:
    """The bytes that an example of the document shows as base64."""
    try:
        return base64.b64decode(shown, validate=True)
    except (binascii.Error, ValueError):
        return shown


# Of bytes the schema says nothing.
schemathesis.openapi.media_type(
    OCTETS, st.integers(0, 1 << 32).map(lambda seed: values.exported_session(random.Random(seed)))
)


@schemathesis.deserializer(MSGPACK)
def from_msgpack(_: DeserializationContext, response: Response) -> Any:
    """An answer as the schema has it: bytes are strings there."""
    return _told(msgpack.unpackb(response.content))


def _told(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, dict):
        return {name: _told(part) for name, part in value.items()}
    return [_told(part) for part in value] if isinstance(value, list) else value


@schemathesis.hook
def before_load_schema(_: HookContext, raw_schema: Json) -> None:
    """Take the document at its word: an answer has no key that it does not name."""
    for schema in raw_schema["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)


@schemathesis.hook
def map_case(_: HookContext, case: Case) -> Case:
    """Make of a case that is valid by the schema one that mostly means something."""
    rng = random.Random(f"{case.method} {case.path} {case.path_parameters} {case.query} {case.body!r}")
    if JSON not in _answered(case) or rng.random() < 0.5:
        case.headers["Accept"] = MSGPACK
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE or rng.random() < 0.2:
        return case
    if "id" in case.path_parameters:
        case.path_parameters["id"] = rng.choice(values.SESSIONS)
    case.query.update({name: rng.randint(0, 300) for name in ("start", "stop") if name in case.query})
    if isinstance(case.body, dict):
        case.body = _shown(_meant(rng, case, case.body))
    return case


def _shown(value: Any) -> Any:
    """The same value with bytes as base64, which is how the document's examples have them."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return {name: _shown(part) for name, part in value.items()} if isinstance(value, dict) else value


def _answered(case: Case) -> Json:
    responses: Json = case.operation.definition.raw["responses"]
    return {kind: None for status in ("200", "201") for kind in responses.get(status, {}).get("content", {})}


def _meant(rng: random.Random, case: Case, body: Json) -> Json:
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
    """Note an answer."""
    LOG.write(f"{response.status_code} {case.method} {case.path}\n")


@schemathesis.check
def deleted_stays_deleted(_: CheckContext, response: Response, case: Case) -> None:
    """Refuse an answer for a session that was deleted; schemathesis' own check does not know what makes one anew."""
    if "id" in case.path_parameters:
        session = str(case.path_parameters["id"])
        GONE.note((case.method.upper(), case.path), session, case.body, response.status_code)


@schemathesis.hook
def after_network_error(_: HookContext, case: Case, request: requests.PreparedRequest) -> None:
    """Note a call that was not answered."""
    LOG.write(f"none {case.method} {request.url}\n")
