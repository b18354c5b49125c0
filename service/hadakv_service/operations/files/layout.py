"""The safetensors layout of a session file.

A safetensors file has 8 bytes with the length of the header, the header in JSON, and the bytes of the tensors
(https://huggingface.co/docs/safetensors). A file of version 2 has the tensors of each page in position order, and the
SHA-256 of all bytes before it as last tensor. Both export and import thus need memory for a few pages only. A file of
version 1 has the tensors of each layer.
"""

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from typing import Any

import msgspec

from hadakv_kernels import CodecSpec
from hadakv_service.operations.files import metadata
from hadakv_service.operations.files.metadata import METADATA, PagedSpan, Span
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.sessions.session import Session

# Bytes of the header length, little-endian, before the header.
PREFIX_NBYTES = 8
# The header is padded to a multiple of this, so that tensors are aligned.
ALIGNMENT = 8
# Above the header of any export: about 110 bytes for each of four tensors of a page.
MAX_HEADER_NBYTES = 16 << 20
# An export joins small pages to pages of about this size, and of more if there would be more pages than that.
PAGE_NBYTES = 1 << 20
MAX_PAGES = 8192
# Maximum size of a page that is joined from several stored pages.
MAX_PAGE_NBYTES = 64 << 20
DIGEST = "digest"
DIGEST_NBYTES = 32
ITEM_NBYTES = {"U8": 1, "F16": 2, "F32": 4}


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a file.

    Attributes:
        name: name of the tensor.
        dtype: safetensors dtype: U8 for packed bytes, F32 for norms, F16 for the values of a float16 stream.
        shape: `[layers, kv_heads, tokens, ...]`, in version 1 `[kv_heads, tokens, ...]`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return math.prod(self.shape) * ITEM_NBYTES[self.dtype]


DIGEST_PART = Part(DIGEST, "U8", (DIGEST_NBYTES,))


@dataclass(frozen=True, slots=True)
class FilePage:
    """A page of a file of version 2.

    Attributes:
        run: index of the run.
        index: index of the page within its run.
        span: the run.
        start: first token of the page, counted from the first stored token of the run.
        tokens: number of tokens.
    """

    run: int
    index: int
    span: PagedSpan
    start: int
    tokens: int

    @property
    def name(self) -> str:
        """Start of the names of the page's tensors."""
        return f"groups.0.runs.{self.run}.pages.{self.index}"

    def stream_parts(self, session: Session) -> list[list[Part]]:
        """Return the tensors of K and of V, in the order of the file."""
        lead = (self.span.layers, session.kv_heads or 0, self.tokens)
        return [
            stream_parts(f"{self.name}.{stream}", spec, lead) for stream, spec in zip("kv", session.specs, strict=True)
        ]


def stream_parts(name: str, spec: CodecSpec, lead: tuple[int, ...]) -> list[Part]:
    """Return the tensors of K or V, in the order of the file.

    Args:
        name: start of their names.
        spec: codec of the stream.
        lead: their leading axes.
    """
    if spec.codec.kind == "float16":
        return [Part(f"{name}.values", "F16", (*lead, spec.head_dim))]
    packed = Part(f"{name}.packed", "U8", (*lead, spec.row_bytes))
    return [packed, Part(f"{name}.norms", "F32", (*lead, spec.norms))]


def by_layer(spans: Iterable[Span]) -> Iterator[Span]:
    """Yield for each layer the run that it belongs to."""
    for span in spans:
        yield from repeat(span, span.layers)


def layer_parts(session: Session, spans: Iterable[Span]) -> Iterator[Part]:
    """Yield the tensors of a file of version 1, in the order in which it was written: layer by layer, K before V."""
    for layer, span in enumerate(by_layer(spans)):
        for stream, spec in zip("kv", session.specs, strict=True):
            yield from stream_parts(f"layers.{layer}.{stream}", spec, (session.kv_heads or 0, span.tokens))


def paged_spans(session: Session) -> list[PagedSpan]:
    """Return the runs of a session as a file of version 2 describes them: none if its shape is not decided.

    They depend on the session's value alone.
    """
    target = min(max(PAGE_NBYTES, session.nbytes // MAX_PAGES), MAX_PAGE_NBYTES)
    spans = []
    for run in session.runs if session.has_shape else ():
        stored_page_nbytes = page_nbytes(session, run.layers, PAGE_TOKENS)
        joined = max(1, target // stored_page_nbytes) if stored_page_nbytes else 1
        spans.append(PagedSpan(run.layers, run.start, run.stop, run.is_gap, page_tokens=joined * PAGE_TOKENS))
    return spans


def page_nbytes(session: Session, layers: int, tokens: int) -> int:
    """Return the bytes of K and V of a page. 0 if the shape of the session is not decided."""
    if not session.has_shape:
        return 0
    return layers * (session.kv_heads or 0) * tokens * sum(spec.nbytes for spec in session.specs)


def file_pages(spans: Iterable[PagedSpan]) -> Iterator[FilePage]:
    """Yield the pages of a file in its order: by the position of their first token, then by run."""

    def pages_of(run: int, span: PagedSpan) -> Iterator[FilePage]:
        for index, start in enumerate(range(0, span.tokens, span.page_tokens)):
            yield FilePage(run, index, span, start, min(span.page_tokens, span.tokens - start))

    runs = (pages_of(run, span) for run, span in enumerate(spans))
    return heapq.merge(*runs, key=lambda page: (page.span.base + page.start, page.run))


def page_parts(session: Session, spans: Iterable[PagedSpan]) -> Iterator[Part]:
    """Yield the tensors of a file of version 2, in the order of the file."""
    for page in file_pages(spans):
        for parts in page.stream_parts(session):
            yield from parts
    yield DIGEST_PART


def header(session: Session, session_id: str, created: datetime) -> bytes:
    """Return the bytes of a file before the tensors: header length, header, padding."""
    spans = paged_spans(session)
    document: dict[str, Any] = {METADATA: metadata.to_strings(session, spans, session_id, created)}
    offset = 0
    for part in page_parts(session, spans):
        end = offset + part.nbytes
        document[part.name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [offset, end]}
        offset = end
    encoded = msgspec.json.encode(document)
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    return len(encoded).to_bytes(PREFIX_NBYTES, "little") + encoded
