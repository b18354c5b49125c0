"""Parse and validate an untrusted session file.

Bytes that are not a safetensors file raise `MalformedBody`. A file with impossible values raises `InvalidRequest` with
the name of the field. The elements of the tensors are validated later, page by page.
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
# Maximum number of errors in one response, even if every tensor is invalid.
MAX_REPORTED_ERRORS = 8

# Values that a supported file has, and what another value means.
_EXPECTED_METADATA = {
    "format": (session_file.FORMAT, "not a hadakv export"),
    "version": (session_file.VERSION, "the file was written by another version of hadakv"),
    "tables": (fingerprint(), "the file was written with the codec tables of another version of hadakv"),
}

Size = Annotated[int, msgspec.Meta(ge=0)]
T = TypeVar("T")


class TensorHeader(msgspec.Struct, forbid_unknown_fields=True):
    """Header entry of a tensor. Offsets count from the end of the header."""

    dtype: str
    shape: list[Size]
    data_offsets: tuple[Size, Size]


@dataclass(frozen=True, slots=True)
class SessionFile:
    """A file with a valid header.

    Attributes:
        session: session without runs.
        spans: runs of the session.
        tensors: views of the file, by name.
    """

    session: Session
    spans: list[Span]
    tensors: Mapping[str, NDArray[Any]]

    def stream(self, layer: int, stream: str) -> Encoded:
        """Return K or V of a layer as views of the file: uint8 `[kv_heads, tokens, row_bytes]`, float32 norms."""
        name = f"layers.{layer}.{stream}"
        values = self.tensors.get(f"{name}.values")
        if values is not None:
            return Encoded(values.view(np.uint8), np.empty((*values.shape[:-1], 0), np.float32))
        return Encoded(self.tensors[f"{name}.packed"], self.tensors[f"{name}.norms"])


def read(body: serialization.Buffer) -> SessionFile:
    """Parse and validate the header of a file.

    Raises:
        MalformedBody: the body is not a safetensors file, or is truncated.
        InvalidRequest: the file is not a hadakv export, was written by another version, or has an invalid field.
    """
    header, data = _split(memoryview(body))
    try:
        entries = _json(header)
    except ValueError as error:
        raise MalformedBody(f"The header is not valid JSON: {error}.") from None
    if not isinstance(entries, dict):
        raise MalformedBody("The header is not a JSON object.")
    metadata = _metadata(entries.pop(METADATA, None))
    session = _session(metadata)
    expected = list(session_file.parts(session, metadata.runs)) if metadata.runs else []
    headers = _tensor_headers(entries, expected)
    _check_no_gaps(headers, len(data))
    tensors = {part.name: _view(data, headers[part.name], part) for part in expected}
    return SessionFile(session, metadata.runs, tensors)


def _split(body: memoryview) -> tuple[memoryview, memoryview]:
    """Split a file into its header and the bytes of its tensors."""
    if len(body) < PREFIX_NBYTES:
        raise MalformedBody("The file is truncated: it ends before the length of the header.")
    length = int.from_bytes(body[:PREFIX_NBYTES], "little")
    if length > MAX_HEADER_NBYTES:
        raise MalformedBody(f"The header has {length} bytes, the maximum is {MAX_HEADER_NBYTES}.")
    stop = PREFIX_NBYTES + length
    if stop > len(body):
        raise MalformedBody(f"The file is truncated: its header needs {stop} bytes, but the file has {len(body)}.")
    return body[PREFIX_NBYTES:stop], body[stop:]


def _json(text: bytes | memoryview) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: the text is not JSON, has a duplicate key, is nested too deep, or has an invalid number or string.
    """
    try:
        # msgspec rejects NaN and unpaired surrogates. The parser of Python finds duplicate keys.
        msgspec.json.decode(text)
        return json.loads(bytes(text), object_pairs_hook=_reject_duplicate_keys)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(error) from None


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a duplicate key")
    return found


def _metadata(strings: object) -> Metadata:
    """Parse the metadata, checking each field separately."""
    if strings is None:
        raise InvalidRequest([(METADATA, "is missing: not a hadakv export")])
    values = _convert(strings, dict[str, str], METADATA)
    for name, (value, explanation) in _EXPECTED_METADATA.items():
        if values.get(name) != value:
            found = f"not {values[name][:80]!a}" if name in values else "is missing"
            raise _invalid(name, f"must be {value}, {found}: {explanation}")
    return _convert({name: _parsed(name, text) for name, text in values.items()}, Metadata, METADATA)


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
        # A name may fill the whole header. Report only its start.
        where = field if inner in ("body", "[...]") else f"{field}.{inner[:80]}"
        raise InvalidRequest([(where, reason[:200])]) from None


def _session(metadata: Metadata) -> Session:
    """Return the session without runs, after checking the runs."""
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
    layers, limit = sum(span.layers for span in metadata.runs), session.layers or MAX_LAYERS
    if layers > limit:
        raise _invalid("runs", f"have {layers} layers, the maximum is {limit}")
    for i, span in enumerate(metadata.runs):
        if reason := _span_error(span, session.window):
            raise _invalid(f"runs[{i}].base", reason)
    return session


def _span_error(span: Span, window: int | None) -> str | None:
    """Return what is wrong with the first position of a run; None if it is valid."""
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


def _tensor_headers(entries: Mapping[str, Any], expected: list[Part]) -> dict[str, TensorHeader]:
    """Return the header entry of each tensor. They must match what the metadata requires."""
    unknown = sorted(entries.keys() - {part.name for part in expected})
    errors = [(part.name, "is missing") for part in expected if part.name not in entries]
    errors += [("header", f"has a tensor {name[:80]!a} of a layer that the session does not have") for name in unknown]
    _raise_invalid(errors)
    headers = {part.name: _convert(entries[part.name], TensorHeader, part.name) for part in expected}
    _raise_invalid([error for part in expected for error in _header_errors(headers[part.name], part)])
    return headers


def _raise_invalid(errors: list[tuple[str, str]]) -> None:
    if errors:
        raise InvalidRequest(errors[:MAX_REPORTED_ERRORS])


def _header_errors(header: TensorHeader, part: Part) -> Iterator[tuple[str, str]]:
    begin, end = header.data_offsets
    if header.dtype != part.dtype:
        yield f"{part.name}.dtype", f"must be {part.dtype}, not {header.dtype[:20]!a}"
    if tuple(header.shape) != part.shape:
        yield f"{part.name}.shape", f"must be {list(part.shape)}, not {header.shape[:8]}"
    if end - begin != part.nbytes:
        yield f"{part.name}.data_offsets", f"must be {part.nbytes} bytes apart, not {end - begin}"


def _check_no_gaps(headers: Mapping[str, TensorHeader], nbytes: int) -> None:
    """Check that the tensors, in any order, fill the file from the end of the header without gaps or overlaps."""
    at = 0
    for (begin, end), name in sorted((header.data_offsets, name) for name, header in headers.items()):
        if begin != at:
            raise InvalidRequest(
                [(f"{name}.data_offsets", f"must begin at {at}, the end of the previous tensor, not at {begin}")]
            )
        at = end
    if at != nbytes:
        raise MalformedBody(
            f"The file {'is truncated' if at > nbytes else 'has trailing bytes'}: its tensors have {at} bytes, but "
            f"{nbytes} bytes follow the header."
        )


def _view(data: memoryview, header: TensorHeader, part: Part) -> NDArray[Any]:
    begin, end = header.data_offsets
    dtype = DTYPES[part.dtype]
    return (np.frombuffer(data[begin:end], dtype) if end > begin else np.empty(0, dtype)).reshape(part.shape)
