"""How tokens are ordered: runs of layers that share one history of pages.

Nothing here is ever changed in place. An append gives a new run that shares all full pages with the old one, so
a reader needs no lock and a copy of a session is a copy of a tuple.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from hadakv_kernels import Backend, CodecSpec, Encoded
from hadakv_service.sessions.page import Page

# Tokens of a full page. At 8 heads, head_dim 128 and 4 bits a page of one layer is 272 KiB of K and V.
PAGE_TOKENS = 256


def empty(layers: int, kv_heads: int, specs: tuple[CodecSpec, CodecSpec]) -> Page:
    """A page of no tokens, in host memory."""

    def nothing(spec: CodecSpec) -> Encoded:
        lead = (layers, kv_heads, 0)
        return Encoded(np.empty((*lead, spec.row_bytes), np.uint8), np.empty((*lead, spec.norms), np.float32))

    return Page(*map(nothing, specs))


def join(pages: Sequence[Page], axis: int, backend: Backend) -> Page:
    """A new page from several, along axis 0 (layers) or 2 (tokens); always a copy."""

    def joined(streams: Sequence[Encoded]) -> Encoded:
        return Encoded(
            backend.concatenate([s.packed for s in streams], axis),
            backend.concatenate([s.norms for s in streams], axis),
        )

    k, v = zip(*(page.streams for page in pages), strict=True)
    return Page(joined(k), joined(v))


@dataclass(frozen=True, slots=True)
class LayerRun:
    """Consecutive layers with one history.

    Attributes:
        layers: how many.
        base: position of the first stored token.
        length: position after the last.
        pages: the stored tokens: full pages, then a tail of shorter ones.
        full: how many of `pages` are full.
    """

    layers: int
    start: int = 0
    stop: int = 0
    pages: tuple[Page, ...] = ()
    full_pages: int = 0

    def split(self, borders: Sequence[int]) -> list["LayerRun"]:
        """A run for the layers from each border to the next, 0 and all layers being borders; see `Page.split`."""
        split = [page.split(borders) for page in self.pages]
        return [
            replace(self, layers=b - a, pages=tuple(parts[i] for parts in split))
            for i, (a, b) in enumerate(pairwise(borders))
        ]

    def append(self, page: Page, backend: Backend) -> "LayerRun":
        """The run with a page's tokens after its own."""
        if not page.tokens:
            return self
        length = self.stop + page.tokens
        waiting = length - self.start - self.full_pages * PAGE_TOKENS
        if waiting < PAGE_TOKENS:
            return LayerRun(self.layers, self.start, length, (*self.pages, page), self.full_pages)
        tail = (*self.pages[self.full_pages :], page)
        edges = [*range(0, waiting, PAGE_TOKENS), waiting]
        filled = [join(list(_between(tail, a, b)), 2, backend) for a, b in pairwise(edges) if a < b]
        full = self.full_pages + waiting // PAGE_TOKENS
        return replace(self, stop=length, pages=(*self.pages[: self.full_pages], *filled), full_pages=full)

    def pages_after(self, tokens: int) -> int:
        """How many pages there will be once so many tokens are appended, if none is forgotten."""
        waiting = self.stop + tokens - self.start - self.full_pages * PAGE_TOKENS
        if not tokens:
            return len(self.pages)
        return self.full_pages - -waiting // PAGE_TOKENS if waiting >= PAGE_TOKENS else len(self.pages) + 1

    def truncate(self, length: int, backend: Backend) -> "LayerRun":
        """The run without the tokens from a position on, which lies within it; no memory of theirs is kept."""
        if length >= self.stop:
            return self
        full = min(self.full_pages, (length - self.start) // PAGE_TOKENS)
        pieces = _between(self.pages, 0, length - self.start)
        # A part would keep the memory of its page.
        kept = [p if p is whole else join([p], 2, backend) for whole, p in zip(self.pages, pieces, strict=False)]
        return replace(self, stop=length, pages=tuple(kept), full_pages=full)

    def drop_before(self, position: int) -> "LayerRun":
        """The run without the full pages that lie wholly before a position."""
        gone = min(self.full_pages, max(0, position - self.start) // PAGE_TOKENS)
        if not gone:
            return self
        return replace(
            self, start=self.start + gone * PAGE_TOKENS, pages=self.pages[gone:], full_pages=self.full_pages - gone
        )

    def read(self, layers: slice, start: int, stop: int) -> Iterator[Page]:
        """The pieces that hold positions `start` to `stop` of some layers, in order, sharing memory."""
        for piece in _between(self.pages, start - self.start, stop - self.start):
            yield piece if layers == slice(0, self.layers) else piece.slice(layers, slice(None))


def _between(pages: Sequence[Page], start: int, stop: int) -> Iterator[Page]:
    """The parts of consecutive pages between two token offsets from the first page's start."""
    offset = 0
    for page in pages:
        first, last = max(start - offset, 0), min(stop - offset, page.tokens)
        if first < last:
            yield page if last - first == page.tokens else page.slice(slice(None), slice(first, last))
        offset += page.tokens


def same_bytes(a: Page, b: Page, backend: Backend) -> bool:
    """Whether two pages hold the same packed bytes and the same norms, bit for bit."""
    streams = zip(a.streams, b.streams, strict=True)
    pairs = [pair for s, t in streams for pair in ((s.packed, t.packed), (s.norms, t.norms))]
    return all(np.array_equal(backend.to_host(x).view(np.uint8), backend.to_host(y).view(np.uint8)) for x, y in pairs)
