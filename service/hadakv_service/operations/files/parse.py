"""Parse and validate the header of an untrusted session file.

Bytes that are not a safetensors file raise `MalformedBody`. A file with impossible values raises `InvalidRequest` with
the name of the field. The elements of the tensors are validated later, page by page.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from hadakv_kernels import HEAD_DIMS
from hadakv_kernels.tables import fingerprint
from hadakv_service.errors import InvalidRequest, MalformedBody
from hadakv_service.operations.files import layout
from hadakv_service.operations.files.layout import MAX_HEADER_NBYTES, MAX_PAGE_NBYTES, PREFIX_NBYTES, Part
from hadakv_service.operations.files.metadata import FORMAT, KINDS, METADATA, PLAIN, Metadata, PagedSpan, Span, Version2
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.sessions.session import MAX_LAYERS, Session
from hadakv_service.sessions.session_id import check_session_id
from hadakv_service.wire import serialization

# Maximum number of errors in one response, even if every tensor is invalid.
MAX_REPORTED_ERRORS = 8

Size = Annotated[int, msgspec.Meta(ge=0)]
T = TypeVar("T")


class TensorHeader(msgspec.Struct, forbid_unknown_fields=True):
    """Header entry of a tensor. Offsets count from the end of the header."""

    dtype: str
    shape: list[Size]
    data_offsets: tuple[Size, Size]


@dataclass(frozen=True, slots=True)
class FileHeader:
    """A valid header.

    Attributes:
        session: session without runs.
        spans: runs of the session.
        offsets: first byte of each tensor of a file of version 1, counted from the end of the header. None for version
            2, whose tensors follow each other in a fixed order.
        data_nbytes: bytes of the file after the header.
    """

    session: Session
    spans: Sequence[Span]
    offsets: Mapping[str, int] | None
    data_nbytes: int

    @property
    def paged_spans(self) -> list[PagedSpan]:
        """Runs of a session in a file of version 2."""
        return [span for span in self.spans if isinstance(span, PagedSpan)]

    @property
    def runs(self) -> list[tuple[int, int, int, bool]]:
        """Number of layers, first position and length of each run, and whether its layers do not exist."""
        # Version 1 does not say which layers without tokens were appended to.
        is_version_1 = self.offsets is not None
        return [
            (span.layers, span.base, span.length, span.gap or (is_version_1 and not span.length)) for span in self.spans
        ]


def header_nbytes(prefix: bytes | memoryview) -> int:
    """Return the length of the header from the first bytes of a file.

    Raises:
        MalformedBody: it is larger than any header.
    """
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_NBYTES:
        raise MalformedBody(f"The header has {length} bytes, the maximum is {MAX_HEADER_NBYTES}.")
    return length


def parse_header(header: bytes | memoryview) -> FileHeader:
    """Parse and validate the header of a file, without its length.

    Raises:
        MalformedBody: the file is not a safetensors file, or its tensors are not adjacent.
        InvalidRequest: the file is not a hadakv export, was written by another version, or has an invalid field.
    """
    try:
        entries = _json(header)
    except ValueError as error:
        raise MalformedBody(f"The header is not valid JSON: {error}.") from None
    if not isinstance(entries, dict):
        raise MalformedBody("The header is not a JSON object.")
    metadata = _metadata(entries.pop(METADATA, None))
    session = _session(metadata)
    if isinstance(metadata, Version2):
        _check_page_sizes(session, metadata.spans)
        expected = layout.page_parts(session, metadata.spans)
        return FileHeader(session, metadata.spans, None, _check_in_order(entries, expected))
    parts = list(layout.layer_parts(session, metadata.spans)) if metadata.spans else []
    headers = _tensor_headers(entries, parts)
    offsets = {name: each.data_offsets[0] for name, each in headers.items()}
    return FileHeader(session, metadata.spans, offsets, _check_adjacent(headers))


def check_file_nbytes(found: int, header_length: int, data_nbytes: int) -> None:
    """Check that a file is as long as its header says.

    Raises:
        MalformedBody: the file is truncated, or has trailing bytes.
    """
    data = found - PREFIX_NBYTES - header_length
    if data != data_nbytes:
        raise MalformedBody(
            f"The file {'is truncated' if data < data_nbytes else 'has trailing bytes'}: its tensors have "
            f"{data_nbytes} bytes, but {max(data, 0)} bytes follow the header."
        )


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
    _check_value(values, "format", [FORMAT], "not a hadakv export")
    _check_value(values, "version", list(KINDS), "the file was written by another version of hadakv")
    tables_error = "the file was written with the codec tables of another version of hadakv"
    _check_value(values, "tables", [fingerprint()], tables_error)
    kind = KINDS[values["version"]]
    as_json = set(kind.__struct_fields__) - PLAIN
    parsed = {name: _parsed(name, text) if name in as_json else text for name, text in values.items()}
    return _convert(parsed, kind, METADATA)


def _check_value(values: Mapping[str, str], name: str, allowed: list[str], explanation: str) -> None:
    value = values.get(name)
    if value not in allowed:
        found = "is missing" if value is None else f"not {value[:80]!a}"
        raise _invalid(name, f"must be {' or '.join(allowed)}, {found}: {explanation}")


def _parsed(name: str, text: str) -> Any:
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
        if metadata.spans and getattr(metadata, field) is None:
            raise _invalid(field, "is missing, though there are layers")
    check_session_id(metadata.session, f"{METADATA}.session")
    runs = "groups[0].runs" if isinstance(metadata, Version2) else "runs"
    layers, limit = sum(span.layers for span in metadata.spans), session.layers or MAX_LAYERS
    if layers > limit:
        raise _invalid(runs, f"have {layers} layers, the maximum is {limit}")
    for i, span in enumerate(metadata.spans):
        if reason := _span_error(span, session.window):
            raise _invalid(f"{runs}[{i}].base", reason)
        if span.gap and (span.length or session.layers):
            reason = "has tokens" if span.length else "has declared layers"
            raise _invalid(f"{runs}[{i}].gap", f"cannot be true: the run {reason}")
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


def _check_page_sizes(session: Session, spans: Sequence[PagedSpan]) -> None:
    """Reject pages that need more memory at once than an export ever writes."""
    for i, span in enumerate(spans):
        tokens = min(span.page_tokens, span.tokens)
        nbytes = layout.page_nbytes(session, span.layers, tokens)
        if tokens > PAGE_TOKENS and nbytes > MAX_PAGE_NBYTES:
            reason = f"makes pages of {nbytes} bytes, the maximum is {MAX_PAGE_NBYTES}"
            raise _invalid(f"groups[0].runs[{i}].page_tokens", reason)


def _invalid(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest([(f"{METADATA}.{field}", reason)])


def _check_in_order(entries: dict[str, Any], expected: Iterator[Part]) -> int:
    """Check the header entries of a file of version 2. Its tensors follow each other in one order.

    Returns:
        bytes of all tensors.
    """
    errors: list[tuple[str, str]] = []
    at = 0
    # The metadata may claim very many tensors. The loop ends soon after the last one that is in the header.
    for part in expected:
        if part.name not in entries:
            errors.append((part.name, "is missing"))
        else:
            header = _convert(entries.pop(part.name), TensorHeader, part.name)
            errors += _header_errors(header, part)
            if header.data_offsets[0] != at:
                errors.append((f"{part.name}.data_offsets", f"must begin at {at}, not at {header.data_offsets[0]}"))
        if len(errors) >= MAX_REPORTED_ERRORS:
            break
        at += part.nbytes
    else:
        errors += _unknown_tensors(entries)
    _raise_invalid(errors)
    return at


def _unknown_tensors(names: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("header", f"has a tensor {name[:80]!a} of a layer that the session does not have") for name in sorted(names)
    ]


def _tensor_headers(entries: Mapping[str, Any], expected: list[Part]) -> dict[str, TensorHeader]:
    """Return the header entry of each tensor. They must match what the metadata requires."""
    errors = [(part.name, "is missing") for part in expected if part.name not in entries]
    named = {part.name for part in expected}
    errors += _unknown_tensors({name: entry for name, entry in entries.items() if name not in named})
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


def _check_adjacent(headers: Mapping[str, TensorHeader]) -> int:
    """Check that the tensors, in any order, are adjacent from the end of the header on. Return their bytes."""
    at = 0
    for (begin, end), name in sorted((header.data_offsets, name) for name, header in headers.items()):
        if begin != at:
            raise InvalidRequest(
                [(f"{name}.data_offsets", f"must begin at {at}, the end of the previous tensor, not at {begin}")]
            )
        at = end
    return at
