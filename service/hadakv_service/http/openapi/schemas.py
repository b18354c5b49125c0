"""Schemas of request and response bodies for the OpenAPI document."""

from typing import Any

import msgspec

from hadakv_kernels import BITS, HEAD_DIMS
from hadakv_kernels.codec import CHOICES
from hadakv_service import __version__
from hadakv_service.sessions.session import MAX_LAYERS
from hadakv_service.wire import messages, responses

Schema = dict[str, Any]

SESSION_ID: Schema = {"type": "string", "pattern": r"^(?!\.{1,2}$)[A-Za-z0-9_.:-]{1,128}$"}
# Examples of texts in the responses of the probes.
_TEXT_EXAMPLES = {"version": __version__, "backend": "cpu", "detail": "avx512, 2 threads"}
_REF = "#/components/schemas/{name}"
_BODIES = (
    messages.AppendBody,
    messages.SessionBody,
    messages.TruncateBody,
    messages.ForkBody,
    messages.EncodeBody,
    messages.DecodeBody,
)
_RESPONSES = (
    *(responses.StoredAppend, responses.Range, responses.SessionInfo, responses.SessionList, responses.Codecs),
    *(responses.Packed, responses.Norms, responses.Values, responses.Encoded, responses.Health, responses.Readiness),
)


def reference(name: str) -> Schema:
    """Return a reference to the schema of that name."""
    return {"$ref": _REF.format(name=name)}


def schemas() -> dict[str, Schema]:
    """Return the schemas of all bodies by name. Problems have their own."""
    _, found = msgspec.json.schema_components((*_BODIES, *_RESPONSES), ref_template=_REF)
    found["ForkBody"]["properties"]["id"] = SESSION_ID
    found["SessionBody"]["properties"]["layers"]["anyOf"][0]["maximum"] = MAX_LAYERS
    found["Tensor"]["properties"]["data"] = {"type": "string", "format": "binary", "description": "msgpack bin"}
    for name in ("CodecOptions", "CodecPair"):
        found[name]["properties"] |= {
            option: {"anyOf": [schema, {"type": "null"}], "default": None} for option, schema in _codec().items()
        }
    found["DecodeBody"]["properties"]["head_dim"] = {"enum": list(HEAD_DIMS)}
    found["SessionBody"]["properties"]["head_dim"] = {"enum": [*HEAD_DIMS, None], "default": None}
    for name, example in _TEXT_EXAMPLES.items():
        for schema in ("Health", "Readiness"):
            if name in found[schema]["properties"]:
                found[schema]["properties"][name]["examples"] = [example]
    found["Stream"] = {"oneOf": [reference("Packed"), reference("Values")]}
    # Not oneOf: every Packed is also valid as Norms.
    found["ReadStream"] = {"anyOf": [reference("Packed"), reference("Norms"), reference("Values")]}
    found["Metrics"] = {"type": "string"}
    found["File"] = {"type": "string", "format": "binary", "description": "A session as one safetensors file."}
    found["Codec"] = {
        "type": "object",
        "description": "A codec with all of its options. `d512_scale` is present only if it was set.",
        "properties": _codec(),
        "required": [option for option in _codec() if option != "d512_scale"],
    }
    return {name: _without_siblings(schema) for name, schema in found.items()}


def _codec() -> dict[str, Schema]:
    """Return the schema of each option of a codec."""
    choices = {option: {"enum": list(allowed)} for option, allowed in CHOICES.items()}
    return {"bits": {"enum": list(BITS)}, **choices, "d512_scale": {"type": "number", "exclusiveMinimum": 0}}


def _without_siblings(schema: Any) -> Any:
    """Return a schema in which `$ref` has no siblings. They would repeat the referenced schema."""
    if isinstance(schema, list):
        return [_without_siblings(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("$ref"), str):
        return {"$ref": schema["$ref"]}
    return {key: _without_siblings(part) for key, part in schema.items()}
