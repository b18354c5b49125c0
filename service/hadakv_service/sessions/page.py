"""Page: immutable content, residency state, reference count."""

from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from typing import Protocol

import numpy as np

from hadakv_kernels import Backend, CodecSpec, Encoded


class PageState(Enum):
    """Where the bytes of a page are.

    Attributes:
        DIRTY: in memory only. To free the memory, write the page, then evict it.
        CLEAN: in memory and on disk. It can be evicted at once.
        EVICTED: on disk only. A read loads it.
        SLICE: some layers of a parent page, without bytes of its own. It must be materialized before a commit.
    """

    DIRTY = "dirty"
    CLEAN = "clean"
    EVICTED = "evicted"
    SLICE = "slice"


class PageSource(Protocol):
    """The store that loads a page which is not in memory."""

    def load(self, page: "Page") -> tuple[Encoded, Encoded]:
        """Load K and V of a page into the backend's memory.

        Returns:
            K and V: packed uint8 `[layers, kv_heads, tokens, row_bytes]` and norms float32
            `[layers, kv_heads, tokens, norms]`.
        """
        ...


class Page:
    """Stored K and V of some consecutive layers and tokens.

    The content never changes. The page may be loaded or evicted at any time, which changes only the speed of a read.
    Two pages are equal only if they are the same object.

    Args:
        k: packed uint8 `[layers, kv_heads, tokens, row_bytes]` and norms float32 `[layers, kv_heads, tokens, norms]`.
        v: the same axes as `k`.

    Attributes:
        layers: number of layers.
        tokens: number of tokens in each layer.
        nbytes: bytes of packed vectors and norms.
        page_id: row number in the disk store; None if the page is not on disk.
        parent: for a slice, the page that has the bytes, and which of its layers these are; None for other pages.
        ref_count: number of sessions that hold the page. The buffer pool counts it.
    """

    __slots__ = ("__weakref__", "_source", "_streams", "layers", "nbytes", "page_id", "parent", "ref_count", "tokens")

    def __init__(self, k: Encoded, v: Encoded) -> None:
        self._streams: tuple[Encoded, Encoded] | None = (k, v)
        self._source: PageSource | None = None
        self.layers = int(k.packed.shape[0])
        self.tokens = int(k.packed.shape[2])
        self.nbytes = sum(int(stream.packed.nbytes + stream.norms.nbytes) for stream in (k, v))
        self.page_id: int | None = None
        self.parent: tuple[Page, slice] | None = None
        self.ref_count = 0

    @classmethod
    def evicted(cls, source: PageSource, page_id: int, layers: int, tokens: int, nbytes: int) -> "Page":
        """Return a page that is on disk only."""
        page = cls._without_bytes(layers, tokens, nbytes)
        page.set_on_disk(source, page_id)
        return page

    @classmethod
    def _without_bytes(cls, layers: int, tokens: int, nbytes: int) -> "Page":
        page = cls.__new__(cls)
        page.layers, page.tokens, page.nbytes, page.ref_count = layers, tokens, nbytes, 0
        page._streams = page._source = page.page_id = page.parent = None
        return page

    @property
    def state(self) -> PageState:
        """Where the bytes are."""
        if self._streams is not None:
            return PageState.DIRTY if self.page_id is None else PageState.CLEAN
        return PageState.SLICE if self.parent else PageState.EVICTED

    @property
    def is_resident(self) -> bool:
        """Whether the page has bytes of its own in memory."""
        return self._streams is not None

    def load(self) -> tuple[Encoded, Encoded]:
        """Return K and V, reading them from disk if they are not in memory.

        The page source decides whether the page stays in memory afterwards.

        Raises:
            SessionCorrupt: the bytes on disk do not match their checksum.
            StorageUnavailable: the disk cannot be read.
        """
        if self._streams is not None:
            return self._streams
        if self.parent:
            parent, layers = self.parent
            return parent.slice(layers, slice(None)).load()
        assert self._source is not None
        return self._source.load(self)

    def resident_copy(self) -> "Page":
        """Return this page if it is in memory, else a copy of it that is."""
        return self if self.is_resident else Page(*self.load())

    def slice(self, layers: slice, tokens: slice) -> "Page":
        """Return a part of the page as views of its memory."""
        return Page(*(Encoded(s.packed[layers, :, tokens], s.norms[layers, :, tokens]) for s in self.load()))

    def split(self, borders: Sequence[int]) -> list["Page"]:
        """Return slices of the page: one for the layers from each border to the next.

        Nothing is read or copied. A slice keeps its parent page alive until it gets bytes of its own.
        """
        parent, first = (self.parent[0], self.parent[1].start) if self.parent else (self, 0)
        slices = []
        for a, b in pairwise(borders):
            page = Page._without_bytes(b - a, self.tokens, self.nbytes // self.layers * (b - a))
            page.parent = parent, slice(first + a, first + b)
            slices.append(page)
        return slices

    def set_on_disk(self, source: PageSource, page_id: int) -> None:
        """Record that the page is on disk, and where to load it from."""
        self._source, self.page_id, self.parent = source, page_id, None

    def clear_resident(self) -> None:
        """Free the memory of a page that is on disk."""
        assert self._source is not None
        self._streams = None

    def set_resident(self, k: Encoded, v: Encoded) -> None:
        """Give the page bytes in memory."""
        self._streams, self.parent = (k, v), None


def first_non_finite(host: Encoded, spec: CodecSpec) -> int:
    """Return the index of the first vector that is not finite, counted over all leading axes."""
    values = host.packed.view(np.float16) if spec.codec.kind == "float16" else host.norms
    return int(np.argmin(np.isfinite(values).all(axis=-1)))


def on_host(stream: Encoded, backend: Backend) -> Encoded:
    """Return the stream in host memory."""
    return Encoded(backend.to_host(stream.packed), backend.to_host(stream.norms))
