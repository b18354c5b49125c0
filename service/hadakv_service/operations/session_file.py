"""The safetensors layout of an exported session.

A safetensors file has 8 bytes with the length of the header, the header in JSON, and the bytes of the tensors
(https://huggingface.co/docs/safetensors). Each stored layer has its own tensors, named by its index. The export thus
reads the pages layer by layer, and a reader need not know which layers were appended together.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from typing import Annotated, Any

import msgspec

from hadakv_kernels import CodecSpec
from hadakv_kernels.tables import fingerprint
from hadakv_service.sessions.session import MAX_LAYERS, Session
from hadakv_service.wire import messages

FORMAT, VERSION = "hadakv-session", "1"
METADATA = "__metadata__"
# Bytes of the header length, little-endian, before the header.
PREFIX_NBYTES = 8
# The header is padded to a multiple of this, so that tensors are aligned.
ALIGNMENT = 8
# Four tensors for each of MAX_LAYERS layers need less than half of this.
MAX_HEADER_NBYTES = 1 << 20
ITEM_NBYTES = {"U8": 1, "F16": 2, "F32": 4}

Position = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]


class Span(msgspec.Struct, forbid_unknown_fields=True):
    """Consecutive layers that were appended together, with stored tokens from position `base` to `length`."""

    layers: Annotated[int, msgspec.Meta(ge=1, le=MAX_LAYERS)]
    base: Position
    length: Position

    @property
    def tokens(self) -> int:
        """Number of stored tokens of each layer."""
        return self.length - self.base


class Metadata(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Metadata of a session in a file. Each value is a string there. Those in `AS_JSON` are JSON."""

    format: str
    version: str
    tables: str
    session: str
    created: datetime
    runs: list[Span]
    codec: messages.CodecPair | None = None
    declared_layers: Annotated[int, msgspec.Meta(ge=1, le=MAX_LAYERS)] | None = None
    kv_heads: Annotated[int, msgspec.Meta(ge=1, le=1 << 32)] | None = None
    head_dim: int | None = None
    window: messages.Window | None = None
    ttl_seconds: messages.TtlSeconds | None = None


AS_JSON = frozenset(Metadata.__struct_fields__[5:])


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a file.

    Attributes:
        name: `layers.<index>.<k or v>.<packed, norms or values>`.
        dtype: safetensors dtype: U8 for packed bytes, F32 for norms, F16 for the values of a float16 stream.
        shape: `[kv_heads, tokens, ...]`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return math.prod(self.shape) * ITEM_NBYTES[self.dtype]


def stream_parts(layer: int, stream: str, spec: CodecSpec, kv_heads: int, tokens: int) -> list[Part]:
    """Return the tensors of K or V of a layer, in the order of the file."""
    name, lead = f"layers.{layer}.{stream}", (kv_heads, tokens)
    if spec.codec.kind == "float16":
        return [Part(f"{name}.values", "F16", (*lead, spec.head_dim))]
    packed = Part(f"{name}.packed", "U8", (*lead, spec.row_bytes))
    return [packed, Part(f"{name}.norms", "F32", (*lead, spec.norms))]


def spans(session: Session) -> list[Span]:
    """Return the runs of a session as the file describes them."""
    return [Span(run.layers, run.start, run.stop) for run in session.runs]


def by_layer(spans: Iterable[Span]) -> Iterator[Span]:
    """Yield for each layer the run that it belongs to."""
    for span in spans:
        yield from repeat(span, span.layers)


def parts(session: Session, spans: Iterable[Span]) -> Iterator[Part]:
    """Yield the tensors of a session with these runs, in the order of the file: layer by layer, K before V."""
    for layer, span in enumerate(by_layer(spans)):
        for stream, spec in zip("kv", session.specs, strict=True):
            yield from stream_parts(layer, stream, spec, session.kv_heads or 0, span.tokens)


def header(session: Session, session_id: str, created: datetime) -> bytes:
    """Return the bytes of a file before the tensors: header length, header, padding."""
    document: dict[str, Any] = {METADATA: _metadata(session, session_id, created)}
    offset = 0
    for part in parts(session, spans(session)):
        end = offset + part.nbytes
        document[part.name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [offset, end]}
        offset = end
    encoded = msgspec.json.encode(document)
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    return len(encoded).to_bytes(PREFIX_NBYTES, "little") + encoded


def _metadata(session: Session, session_id: str, created: datetime) -> dict[str, str]:
    codecs = session.codecs and dict(zip("kv", (codec.to_mapping() for codec in session.codecs), strict=True))
    metadata = Metadata(
        format=FORMAT,
        version=VERSION,
        tables=fingerprint(),
        session=session_id,
        created=created,
        runs=spans(session),
        codec=msgspec.convert(codecs, messages.CodecPair) if codecs else None,
        declared_layers=session.layers,
        kv_heads=session.kv_heads,
        head_dim=session.head_dim,
        window=session.window,
        ttl_seconds=session.ttl_seconds,
    )
    fields: dict[str, Any] = msgspec.to_builtins(metadata)
    return {name: msgspec.json.encode(x).decode() if name in AS_JSON else x for name, x in fields.items()}
