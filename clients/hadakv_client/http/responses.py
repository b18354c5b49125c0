"""Parsers for response bodies. They ignore unknown fields; a missing or invalid field raises `ProtocolError`."""

from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from types import NoneType
from typing import Any, Literal

import numpy as np

from hadakv_client.errors import ProtocolError
from hadakv_client.http.tensors import WIRE_DTYPES, Array, from_wire
from hadakv_client.results import Codecs, LayerSpan, ServiceStatus, SessionInfo, SessionPage
from hadakv_kernels import Codec, CodecError, Diagnostics, Encoded

Form = Literal["packed", "float16", "float32", "bfloat16", "rotated"]
Layout = Literal["linear", "ring"]
ValueForm = Literal["float16", "float32", "bfloat16", "rotated"]


def required_field(document: object, name: str, *types: type) -> Any:
    """Return a field of a map.

    Raises:
        ProtocolError: the field is missing, or its type is not one of `types`.
    """
    value = document.get(name) if isinstance(document, Mapping) else None
    if type(value) not in types:
        expected = " or ".join(each.__name__ for each in types)
        raise ProtocolError(f"invalid response: {name} is {type(value).__name__}, expected {expected}")
    return value


def check_equal(name: str, value: object, expected: object) -> None:
    """Check that a response belongs to its request.

    Raises:
        ProtocolError: the value is not the expected one.
    """
    if value != expected:
        raise ProtocolError(f"invalid response: {name} is {value!r}, expected {expected!r}")


def encoded(stream: object, name: str) -> Encoded:
    """Return a packed stream. A float16 codec sends `values`; their bytes become the packed bytes."""
    if isinstance(stream, Mapping) and "values" in stream:
        values = from_wire(stream["values"], f"{name}.values", "float16")
        return Encoded(values.view(np.uint8), np.zeros((*values.shape[:-1], 0), np.float32))
    packed = from_wire(required_field(stream, "packed", dict), f"{name}.packed", "uint8")
    norms = from_wire(required_field(stream, "norms", dict), f"{name}.norms", "float32")
    check_equal(f"{name}.norms.shape", norms.shape[:-1], packed.shape[:-1])
    return Encoded(packed, norms)


def values(stream: object, name: str, form: ValueForm) -> Array:
    """Return a decoded stream."""
    return from_wire(required_field(stream, "values", dict), f"{name}.values", _dtype(form))


def _dtype(form: ValueForm) -> str:
    return "float32" if form == "rotated" else form


def appended_stream(stream: object, name: str, tokens: int) -> Encoded:
    """Return a packed stream and check its number of tokens."""
    packed = encoded(stream, name)
    _check_tokens(packed.packed, name, tokens)
    return packed


def layer_indices(document: Mapping[str, Any], requested: tuple[int, int] | None) -> tuple[int, ...]:
    """Return the indices of the layers of a range, and check that they are in order and among those requested."""
    layers = required_field(document, "layers", list)
    if not all(type(layer) is int for layer in layers) or any(a >= b for a, b in pairwise(layers)):
        raise ProtocolError(f"invalid response: layers is {layers!r}, expected increasing integers")
    if requested and layers and not requested[0] <= layers[0] <= layers[-1] < requested[1]:
        raise ProtocolError(f"invalid response: layers is {layers!r}, expected layers of {requested[0]}:{requested[1]}")
    return tuple(layers)


def stored_stream(stream: object, name: str, form: Form, axes: tuple[int, int | None]) -> Encoded | Array:
    """Return a stream in the requested form.

    Args:
        stream: a map; None before the first append.
        name: name of the field in the response, for the error message.
        form: requested form.
        axes: expected number of layers and of tokens; None accepts any number of tokens.
    """
    layers, tokens = axes
    if stream is None:
        check_equal(f"number of tokens without {name}", tokens or 0, 0)
        return _empty_stream(form)
    found = encoded(stream, name) if form == "packed" else values(stream, name, form)
    array = found.packed if isinstance(found, Encoded) else found
    _check_tokens(array, name, tokens)
    check_equal(f"number of layers of {name}", len(array), layers)
    return found


def _empty_stream(form: Form) -> Encoded | Array:
    empty = np.empty((0, 0, 0, 0), np.float32)
    if form == "packed":
        return Encoded(empty.astype(np.uint8), empty)
    return empty.astype(WIRE_DTYPES[_dtype(form)])


def _check_tokens(array: Array, name: str, tokens: int | None) -> None:
    if array.ndim != 4 or tokens not in (None, array.shape[2]):
        raise ProtocolError(f"invalid response: {name} has the shape {list(array.shape)} for {tokens} tokens")


def diagnostics(document: Mapping[str, Any]) -> Diagnostics:
    """Return a packed stream with intermediate results of the codec."""
    scaled, rms = (from_wire(required_field(document, part, dict), part, "float32") for part in ("scaled", "rms"))
    return Diagnostics(encoded(document, "x"), scaled, rms)


def session_info(document: Mapping[str, Any]) -> SessionInfo:
    """Return the description of one session."""
    codec = required_field(document, "codec", dict, NoneType)
    created, last_used = _timestamp(document, "created"), _timestamp(document, "last_used")
    return SessionInfo(
        session=required_field(document, "session", str),
        codec=None if codec is None else Codecs(_codec(codec, "k"), _codec(codec, "v")),
        kv_heads=required_field(document, "kv_heads", int, NoneType),
        head_dim=required_field(document, "head_dim", int, NoneType),
        layers=tuple(
            LayerSpan(*(required_field(span, name, int) for name in LayerSpan._fields))
            for span in required_field(document, "layers", list)
        ),
        length=required_field(document, "length", int),
        nbytes=required_field(document, "nbytes", int),
        raw_nbytes=required_field(document, "raw_nbytes", int),
        tier=required_field(document, "tier", str),
        window=required_field(document, "window", int, NoneType),
        ttl_seconds=required_field(document, "ttl_seconds", float, int, NoneType),
        durability=required_field(document, "durability", str),
        created=created,
        last_used=last_used,
        expires=None if document.get("expires") is None else _timestamp(document, "expires"),
    )


def _codec(codecs: Mapping[str, Any], stream: str) -> Codec:
    try:
        return Codec.from_mapping(required_field(codecs, stream, dict))
    except CodecError as error:
        raise ProtocolError(f"invalid response: this client does not support the session's codec: {error}") from error


def _timestamp(document: Mapping[str, Any], name: str) -> datetime:
    text = required_field(document, name, str)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ProtocolError(f"invalid response: {name} is {text!r}, expected a timestamp") from None


def service_status(document: Mapping[str, Any]) -> ServiceStatus:
    """Return the state of the service."""
    texts = {name: required_field(document, name, str) for name in ("version", "backend", "detail")}
    sizes = ("used_nbytes", "budget_nbytes", "disk_used_nbytes", "disk_budget_nbytes", "disk_room_nbytes")
    numbers = {name: required_field(document, name, int) for name in ("sessions", *sizes)}
    uptime = required_field(document, "uptime_seconds", float, int)
    return ServiceStatus(**texts, **numbers, uptime_seconds=uptime)


def session_page(document: Mapping[str, Any]) -> SessionPage:
    """Return part of the list of sessions."""
    sessions = required_field(document, "sessions", list)
    if not all(isinstance(session, dict) for session in sessions):
        raise ProtocolError("invalid response: sessions has an entry that is not a map")
    return SessionPage(tuple(map(session_info, sessions)), required_field(document, "next", str, NoneType))
