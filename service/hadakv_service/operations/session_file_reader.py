"""Reads a session from a safetensors file that anybody may have made: nothing of it is believed.

Bytes that are no such file are a `MalformedBody`; a file that says what cannot be is an `InvalidRequest` that names
the field. What the tensors' elements say is looked at later, page by page.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import HEAD_DIMS, Encoded
from hadakv_kernels.tables import fingerprint
from hadakv_service.errors import InvalidRequest, MalformedBody
from hadakv_service.operations import session_file
from hadakv_service.operations.session_file import (
    AS_JSON,
    MAX_HEADER_NBYTES,
    METADATA,
    PREFIX_NBYTES,
    Metadata,
    Part,
    Span,
)
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.sessions.session import MAX_LAYERS, Session
from hadakv_service.sessions.session_id import check_session_id
from hadakv_service.wire import serialization

DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype(np.uint8), "F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}
# A file that is wrong in every tensor is told of the first few.
MAX_REPORTED_ERRORS = 8

# What a file that can be read here says, and what it is otherwise.
_EXPECTED_METADATA = {
    "format": (session_file.FORMAT, "no session was exported to this file"),
    "version": (session_file.VERSION, "the file is of another version of hadakv"),
    "tables": (fingerprint(), "the file was packed with the codec tables of another version of hadakv"),
}

Size = Annotated[int, msgspec.Meta(ge=0)]
T = TypeVar("T")


class TensorHeader(msgspec.Struct, forbid_unknown_fields=True):
    """What the header says of a tensor; offsets count from the header's end."""

    dtype: str
    shape: list[Size]
    data_offsets: tuple[Size, Size]


@dataclass(frozen=True, slots=True)
class SessionFile:
    """A file whose header has been checked.

    Attributes:
        session: the session without its runs.
        spans: what runs it has.
        tensors: views of the file, by name.
    """

    session: Session
    spans: list[Span]
    tensors: Mapping[str, NDArray[Any]]

    def stream(self, layer: int, stream: str) -> Encoded:
        """One layer's k or v, as views of the file: packed uint8 `[kv_heads, tokens, row_bytes]` and its norms."""
        name = f"layers.{layer}.{stream}"
        values = self.tensors.get(f"{name}.values")
        if values is not None:
            return Encoded(values.view(np.uint8), np.empty((*values.shape[:-1], 0), np.float32))
        return Encoded(self.tensors[f"{name}.packed"], self.tensors[f"{name}.norms"])


def read(body: serialization.Buffer) -> SessionFile:
    """Check a file's header.

    Raises:
        MalformedBody: it is no safetensors file, or is cut short.
        InvalidRequest: it is no session's, is of another version, or says what cannot be.
    """
    header, data = _split(memoryview(body))
    try:
        entries = _json(header)
    except ValueError as error:
        raise MalformedBody(f"The header is not valid JSON: {error}.") from None
    if not isinstance(entries, dict):
        raise MalformedBody("The header is no JSON object.")
    metadata = _metadata(entries.pop(METADATA, None))
    session = _session(metadata)
    wanted = list(session_file.parts(session, metadata.runs)) if metadata.runs else []
    heads = _tensor_headers(entries, wanted)
    _check_no_gaps(heads, len(data))
    return SessionFile(session, metadata.runs, {part.name: _view(data, heads[part.name], part) for part in wanted})


def _split(body: memoryview) -> tuple[memoryview, memoryview]:
    """A file's header and the bytes of its tensors."""
    if len(body) < PREFIX_NBYTES:
        raise MalformedBody("The file is cut short: it has not even the length of its header.")
    length = int.from_bytes(body[:PREFIX_NBYTES], "little")
    if length > MAX_HEADER_NBYTES:
        raise MalformedBody(f"The header would have {length} bytes; no session's has more than {MAX_HEADER_NBYTES}.")
    stop = PREFIX_NBYTES + length
    if stop > len(body):
        raise MalformedBody(f"The file is cut short: its header alone reaches to byte {stop} of {len(body)}.")
    return body[PREFIX_NBYTES:stop], body[stop:]


def _json(text: bytes | memoryview) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: it is none, has a key twice, is nested too deep, or has a number or a text there is not.
    """
    try:
        # msgspec knows no NaN and no halves of characters, and Python's own parser sees keys that come twice.
        msgspec.json.decode(text)
        return json.loads(bytes(text), object_pairs_hook=_reject_duplicate_keys)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(error) from None


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _metadata(strings: object) -> Metadata:
    """What the file says of its session, each field by itself."""
    if strings is None:
        raise InvalidRequest([(METADATA, "is missing: no session was exported to this file")])
    given = _convert(strings, dict[str, str], METADATA)
    for name, (value, otherwise) in _EXPECTED_METADATA.items():
        if given.get(name) != value:
            found = f"not {given[name][:80]!a}" if name in given else "is missing"
            raise _invalid(name, f"must be {value}, {found}: {otherwise}")
    return _convert({name: _parsed(name, text) for name, text in given.items()}, Metadata, METADATA)


def _parsed(name: str, text: str) -> Any:
    if name not in AS_JSON:
        return text
    try:
        return _json(text.encode())
    except ValueError as error:
        raise _invalid(name, f"is not valid JSON: {error}") from None


def _convert(value: object, kind: type[T], field: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        inner, reason = serialization.field_and_reason(error)
        # Nobody needs to be told all of a name that fills a header.
        where = field if inner in ("body", "[...]") else f"{field}.{inner[:80]}"
        raise InvalidRequest([(where, reason[:200])]) from None


def _session(metadata: Metadata) -> Session:
    """The session without its runs, which are checked."""
    if metadata.head_dim is not None and metadata.head_dim not in HEAD_DIMS:
        raise _invalid("head_dim", f"must be one of {HEAD_DIMS}, not {metadata.head_dim}")
    session = Session(
        codecs=metadata.codec.codecs() if metadata.codec else None,
        layers=metadata.declared_layers,
        kv_heads=metadata.kv_heads,
        head_dim=metadata.head_dim,
        window=metadata.window,
        ttl_seconds=metadata.ttl_seconds,
    )
    for field in ("codec", "kv_heads", "head_dim"):
        if metadata.runs and getattr(metadata, field) is None:
            raise _invalid(field, "is missing, though there are layers")
    check_session_id(metadata.session, f"{METADATA}.session")
    layers, most = sum(span.layers for span in metadata.runs), session.layers or MAX_LAYERS
    if layers > most:
        raise _invalid("runs", f"have {layers} layers, there may be at most {most}")
    for i, span in enumerate(metadata.runs):
        if reason := _span_error(span, session.window):
            raise _invalid(f"runs[{i}].base", reason)
    return session


def _span_error(span: Span, window: int | None) -> str | None:
    """What is wrong with the first position that layers have."""
    if span.base > span.length:
        return f"must not be beyond the length {span.length}, not {span.base}"
    if window is None:
        return f"must be 0 in a session without a window, not {span.base}" if span.base else None
    if span.base % PAGE_TOKENS:
        return f"must be a multiple of {PAGE_TOKENS}, not {span.base}"
    if span.length - window - span.base >= PAGE_TOKENS:
        return f"is more than {PAGE_TOKENS} tokens before those of the window, which begins at {span.length - window}"
    return None


def _invalid(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest([(f"{METADATA}.{field}", reason)])


def _tensor_headers(entries: Mapping[str, Any], wanted: list[Part]) -> dict[str, TensorHeader]:
    """What the header says of each tensor, which must be what the metadata asks for."""
    unknown = sorted(entries.keys() - {part.name for part in wanted})
    errors = [(part.name, "is missing") for part in wanted if part.name not in entries]
    errors += [("header", f"has a tensor {name[:80]!a}, for which there is no layer") for name in unknown]
    _raise_invalid(errors)
    heads = {part.name: _convert(entries[part.name], TensorHeader, part.name) for part in wanted}
    _raise_invalid([mistake for part in wanted for mistake in _header_errors(heads[part.name], part)])
    return heads


def _raise_invalid(errors: list[tuple[str, str]]) -> None:
    if errors:
        raise InvalidRequest(errors[:MAX_REPORTED_ERRORS])


def _header_errors(head: TensorHeader, part: Part) -> Iterator[tuple[str, str]]:
    begin, end = head.data_offsets
    if head.dtype != part.dtype:
        yield f"{part.name}.dtype", f"must be {part.dtype}, not {head.dtype[:20]!a}"
    if tuple(head.shape) != part.shape:
        yield f"{part.name}.shape", f"must be {list(part.shape)}, not {head.shape[:8]}"
    if end - begin != part.nbytes:
        yield f"{part.name}.data_offsets", f"must lie {part.nbytes} apart, as its shape says, not {end - begin}"


def _check_no_gaps(heads: Mapping[str, TensorHeader], nbytes: int) -> None:
    """Tensors lie side by side, in any order, from the header's end to the file's."""
    at = 0
    for (begin, end), name in sorted((head.data_offsets, name) for name, head in heads.items()):
        if begin != at:
            raise InvalidRequest([(f"{name}.data_offsets", f"must begin at {at}, where another ends, not at {begin}")])
        at = end
    if at != nbytes:
        raise MalformedBody(
            f"The file {'is cut short' if at > nbytes else 'goes on after its end'}: its tensors have {at} bytes, and "
            f"after its header there are {nbytes}."
        )


def _view(data: memoryview, head: TensorHeader, part: Part) -> NDArray[Any]:
    begin, end = head.data_offsets
    dtype = DTYPES[part.dtype]
    return (np.frombuffer(data[begin:end], dtype) if end > begin else np.empty(0, dtype)).reshape(part.shape)
