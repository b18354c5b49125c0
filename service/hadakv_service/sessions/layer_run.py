"""LayerRun: consecutive layers that share one page list.

Runs are immutable. An append returns a new run, which shares all full pages with the old one. Readers therefore need
no lock, and copying a session copies a tuple.
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
    """Return a page without tokens, in host memory."""

    def no_tokens(spec: CodecSpec) -> Encoded:
        lead = (layers, kv_heads, 0)
        return Encoded(np.empty((*lead, spec.row_bytes), np.uint8), np.empty((*lead, spec.norms), np.float32))

    return Page(*map(no_tokens, specs))


def join(pages: Sequence[Page], axis: int, backend: Backend) -> Page:
    """Concatenate pages along axis 0 (layers) or 2 (tokens). The result is always a copy."""

    def joined(streams: Sequence[Encoded]) -> Encoded:
        return Encoded(
            backend.concatenate([s.packed for s in streams], axis),
            backend.concatenate([s.norms for s in streams], axis),
        )

    k, v = zip(*(page.load() for page in pages), strict=True)
    return Page(joined(k), joined(v))


@dataclass(frozen=True, slots=True)
class LayerRun:
    """Consecutive layers whose tokens were appended together.

    Attributes:
        layers: number of layers.
        start: position of the first stored token.
        stop: position after the last stored token.
        pages: pages with the stored tokens: full pages first, then shorter ones.
        full_pages: number of full pages.
        is_gap: whether the layers do not exist: they were neither declared nor appended to, but later ones were.
    """

    layers: int
    start: int = 0
    stop: int = 0
    pages: tuple[Page, ...] = ()
    full_pages: int = 0
    is_gap: bool = False

    def split(self, borders: Sequence[int]) -> list["LayerRun"]:
        """Return a run for the layers from each border to the next; see `Page.split`.

        Args:
            borders: layer indices within the run, in order, from 0 to `layers`.
        """
        split = [page.split(borders) for page in self.pages]
        return [
            replace(self, layers=b - a, pages=tuple(parts[i] for parts in split))
            for i, (a, b) in enumerate(pairwise(borders))
        ]

    def append(self, page: Page, backend: Backend) -> "LayerRun":
        """Return the run with the tokens of a page at its end. Its layers exist from then on, also without tokens."""
        if self.is_gap:
            return replace(self, is_gap=False).append(page, backend)
        if not page.tokens:
            return self
        stop = self.stop + page.tokens
        unmerged = stop - self.start - self.full_pages * PAGE_TOKENS
        if self.adds_page(page.tokens):
            return LayerRun(self.layers, self.start, stop, (*self.pages, page), self.full_pages)
        tail = (*self.pages[self.full_pages :], page)
        edges = [*range(0, unmerged, PAGE_TOKENS), unmerged]
        merged = [join(list(_between(tail, a, b)), 2, backend) for a, b in pairwise(edges) if a < b]
        full = self.full_pages + unmerged // PAGE_TOKENS
        return replace(self, stop=stop, pages=(*self.pages[: self.full_pages], *merged), full_pages=full)

    def adds_page(self, tokens: int) -> bool:
        """Whether an append of `tokens` tokens adds a page and merges none."""
        return self.stop + tokens - self.start - self.full_pages * PAGE_TOKENS < PAGE_TOKENS

    def pages_after(self, tokens: int) -> int:
        """Return the number of pages after an append of `tokens` tokens, before any page leaves the window."""
        unmerged = self.stop + tokens - self.start - self.full_pages * PAGE_TOKENS
        if not tokens:
            return len(self.pages)
        return self.full_pages - -unmerged // PAGE_TOKENS if unmerged >= PAGE_TOKENS else len(self.pages) + 1

    def truncate(self, length: int, backend: Backend) -> "LayerRun":
        """Return the run without the tokens from position `length` on. Their memory is not kept.

        Args:
            length: position after the last token to keep, at least `start`.
            backend: backend that copies the last page.
        """
        if length >= self.stop:
            return self
        full = min(self.full_pages, (length - self.start) // PAGE_TOKENS)
        kept = _between(self.pages, 0, length - self.start)
        # A view would keep the memory of the whole page. Copy it.
        pages = [p if p is page else join([p], 2, backend) for page, p in zip(self.pages, kept, strict=False)]
        return replace(self, stop=length, pages=tuple(pages), full_pages=full)

    def drop_before(self, position: int) -> "LayerRun":
        """Return the run without the full pages that end at or before a position."""
        dropped = min(self.full_pages, max(0, position - self.start) // PAGE_TOKENS)
        if not dropped:
            return self
        return replace(
            self,
            start=self.start + dropped * PAGE_TOKENS,
            pages=self.pages[dropped:],
            full_pages=self.full_pages - dropped,
        )

    def read(self, layers: slice, start: int, stop: int) -> Iterator[Page]:
        """Yield positions `start` to `stop` of some layers as pages, in order. They share memory with the run."""
        for page in _between(self.pages, start - self.start, stop - self.start):
            yield page if layers == slice(0, self.layers) else page.slice(layers, slice(None))

    def pages_between(self, start: int, stop: int) -> Iterator[Page]:
        """Yield the stored pages that have positions `start` to `stop`."""
        position = self.start
        for page in self.pages:
            if start < position + page.tokens and position < stop:
                yield page
            position += page.tokens


def _between(pages: Sequence[Page], start: int, stop: int) -> Iterator[Page]:
    """Yield the parts of consecutive pages between two token offsets, counted from the start of the first page."""
    offset = 0
    for page in pages:
        first, last = max(start - offset, 0), min(stop - offset, page.tokens)
        if first < last:
            yield page if last - first == page.tokens else page.slice(slice(None), slice(first, last))
        offset += page.tokens


def same_bytes(a: Page, b: Page, backend: Backend) -> bool:
    """Whether two pages have the same packed bytes and the same norms, bit for bit."""
    streams = zip(a.load(), b.load(), strict=True)
    pairs = [pair for s, t in streams for pair in ((s.packed, t.packed), (s.norms, t.norms))]
    return all(np.array_equal(backend.to_host(x).view(np.uint8), backend.to_host(y).view(np.uint8)) for x, y in pairs)
