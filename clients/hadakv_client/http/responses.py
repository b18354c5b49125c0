"""Reads the maps that answers are. Unknown keys are ignored; what is needed and wrong is a `ProtocolError`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import numpy as np

from hadakv_client.errors import ProtocolError
from hadakv_client.http.tensors import ON_THE_WIRE, Array, from_wire
from hadakv_client.results import Codecs, LayerSpan, Page, SessionInfo
from hadakv_kernels import Codec, CodecError, Diagnostics, Encoded

Form = Literal["packed", "float16", "float32", "bfloat16", "rotated"]
Layout = Literal["linear", "ring"]
ValueForm = Literal["float16", "float32", "bfloat16", "rotated"]
MISSING = type(None)


def member(document: object, name: str, *kinds: type) -> Any:
    """A member of a map, of one of those types.

    Raises:
        ProtocolError: it is missing or of another type.
    """
    value = document.get(name) if isinstance(document, Mapping) else None
    if type(value) not in kinds:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ProtocolError(f"the answer's {name} should be {wanted} and is {type(value).__name__}")
    return value


def expect(name: str, value: object, expected: object) -> None:
    """Refuse an answer that is not to the question.

    Raises:
        ProtocolError: they differ.
    """
    if value != expected:
        raise ProtocolError(f"the answer's {name} is {value!r} instead of {expected!r}")


def encoded(stream: object, name: str) -> Encoded:
    """A packed stream; the float16 kind comes as `values`, which are then the packed bytes."""
    if isinstance(stream, Mapping) and "values" in stream:
        values = from_wire(stream["values"], f"{name}.values", "float16")
        return Encoded(values.view(np.uint8), np.zeros((*values.shape[:-1], 0), np.float32))
    packed = from_wire(member(stream, "packed", dict), f"{name}.packed", "uint8")
    norms = from_wire(member(stream, "norms", dict), f"{name}.norms", "float32")
    expect(f"{name}.norms.shape", norms.shape[:-1], packed.shape[:-1])
    return Encoded(packed, norms)


def values(stream: object, name: str, form: ValueForm) -> Array:
    """A decoded stream."""
    return from_wire(member(stream, "values", dict), f"{name}.values", _dtype(form))


def _dtype(form: ValueForm) -> str:
    return "float32" if form == "rotated" else form


def appended_stream(stream: object, name: str, tokens: int) -> Encoded:
    """A packed stream of so many tokens."""
    packed = encoded(stream, name)
    _expect_tokens(packed.packed, name, tokens)
    return packed


def stored_stream(stream: object, name: str, form: Form, tokens: int | None) -> Encoded | Array:
    """A stream of so many tokens, None is any, in the form asked for; there is none before the first append."""
    if stream is None:
        expect(f"number of tokens without {name}", tokens or 0, 0)
        return _nothing(form)
    if form == "packed":
        packed = encoded(stream, name)
        _expect_tokens(packed.packed, name, tokens)
        return packed
    array = values(stream, name, form)
    _expect_tokens(array, name, tokens)
    return array


def _nothing(form: Form) -> Encoded | Array:
    nothing = np.empty((0, 0, 0, 0), np.float32)
    if form == "packed":
        return Encoded(nothing.astype(np.uint8), nothing)
    return nothing.astype(ON_THE_WIRE[_dtype(form)])


def _expect_tokens(array: Array, name: str, tokens: int | None) -> None:
    if array.ndim != 4 or tokens not in (None, array.shape[2]):
        raise ProtocolError(f"the answer's {name} has the shape {list(array.shape)} for {tokens} tokens")


def diagnostics(document: Mapping[str, Any]) -> Diagnostics:
    """A packed stream and what the codec saw on the way."""
    scaled, rms = (from_wire(member(document, part, dict), part, "float32") for part in ("scaled", "rms"))
    return Diagnostics(encoded(document, "x"), scaled, rms)


def session_info(document: Mapping[str, Any]) -> SessionInfo:
    """One session's description."""
    codec = member(document, "codec", dict, MISSING)
    created, last_used = _moment(document, "created"), _moment(document, "last_used")
    return SessionInfo(
        session=member(document, "session", str),
        codec=None if codec is None else Codecs(_codec(codec, "k"), _codec(codec, "v")),
        kv_heads=member(document, "kv_heads", int, MISSING),
        head_dim=member(document, "head_dim", int, MISSING),
        layers=tuple(
            LayerSpan(*(member(span, name, int) for name in LayerSpan._fields))
            for span in member(document, "layers", list)
        ),
        length=member(document, "length", int),
        nbytes=member(document, "nbytes", int),
        raw_nbytes=member(document, "raw_nbytes", int),
        tier=member(document, "tier", str),
        window=member(document, "window", int, MISSING),
        ttl_seconds=member(document, "ttl_seconds", float, int, MISSING),
        durability=member(document, "durability", str),
        created=created,
        last_used=last_used,
        expires=None if document.get("expires") is None else _moment(document, "expires"),
    )


def _codec(codecs: Mapping[str, Any], stream: str) -> Codec:
    try:
        return Codec.from_mapping(member(codecs, stream, dict))
    except CodecError as error:
        raise ProtocolError(f"the session has a codec that is not known here: {error}") from error


def _moment(document: Mapping[str, Any], name: str) -> datetime:
    text = member(document, name, str)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ProtocolError(f"the answer's {name} is no time: {text!r}") from None


def page(document: Mapping[str, Any]) -> Page:
    """Part of the list of sessions."""
    sessions = member(document, "sessions", list)
    if not all(isinstance(session, dict) for session in sessions):
        raise ProtocolError("the answer's sessions are not maps")
    return Page(tuple(map(session_info, sessions)), member(document, "next", str, MISSING))
