"""A session as one safetensors file: which tensors it has, what its header says.

Such a file is 8 bytes for the header's length, the header, which is JSON, and the tensors' bytes one after the other
(https://huggingface.co/docs/safetensors). Each stored layer has tensors of its own, named by its index: so one step
across the pages gives all that the file has of a layer, and whoever reads a layer need not know how it was appended.
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
# The header's length, little-endian, before the header.
PREFIX_NBYTES = 8
# A header is padded to this, so that tensors begin where their elements may.
ALIGNMENT = 8
# Four tensors of each of MAX_LAYERS layers need less than half of it.
MAX_HEADER_NBYTES = 1 << 20
ITEM_NBYTES = {"U8": 1, "F16": 2, "F32": 4}

Position = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]


class Span(msgspec.Struct, forbid_unknown_fields=True):
    """Consecutive layers with one history, of which tokens `base` to `length` are stored."""

    layers: Annotated[int, msgspec.Meta(ge=1, le=MAX_LAYERS)]
    base: Position
    length: Position

    @property
    def tokens(self) -> int:
        """Stored tokens of each layer."""
        return self.length - self.base


class Metadata(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a file says of its session; on file each value is a string, those in `AS_JSON` are JSON."""

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
        dtype: as safetensors names it: U8 for packed bytes, F32 for norms, F16 for the values of a float16 stream.
        shape: `[kv_heads, tokens, ...]`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return math.prod(self.shape) * ITEM_NBYTES[self.dtype]


def stream_parts(layer: int, stream: str, spec: CodecSpec, kv_heads: int, tokens: int) -> list[Part]:
    """The tensors of one layer's k or v, in the order of the file."""
    name, lead = f"layers.{layer}.{stream}", (kv_heads, tokens)
    if spec.codec.kind == "float16":
        return [Part(f"{name}.values", "F16", (*lead, spec.head_dim))]
    packed = Part(f"{name}.packed", "U8", (*lead, spec.row_bytes))
    return [packed, Part(f"{name}.norms", "F32", (*lead, spec.norms))]


def spans(session: Session) -> list[Span]:
    """The runs of a session as a file tells them."""
    return [Span(run.layers, run.start, run.stop) for run in session.runs]


def by_layer(spans: Iterable[Span]) -> Iterator[Span]:
    """For each layer in turn, the run it belongs to."""
    for span in spans:
        yield from repeat(span, span.layers)


def parts(session: Session, spans: Iterable[Span]) -> Iterator[Part]:
    """The tensors of a session that has these runs, in the order of the file: layer by layer, k before v."""
    for layer, span in enumerate(by_layer(spans)):
        for stream, spec in zip("kv", session.specs, strict=True):
            yield from stream_parts(layer, stream, spec, session.kv_heads or 0, span.tokens)


def header(session: Session, session_id: str, created: datetime) -> bytes:
    """All of a file that stands before the tensors' bytes."""
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
