"""A page: the bytes of some tokens, which never change, wherever they lie."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from hadakv_kernels import Backend, CodecSpec, Encoded


class PageSource(Protocol):
    """Where the bytes of a page are while they are not in memory."""

    def load(self, page: "Page") -> tuple[Encoded, Encoded]:
        """K and V of a page, in the backend's own memory."""
        ...


class Page:
    """Stored K and V of some consecutive layers and tokens.

    What a page holds is fixed; whether it is in memory may change at any time, which only its speed shows. Two pages
    are equal only if they are the same.

    Args:
        k: packed uint8 `[layers, kv_heads, tokens, row_bytes]` and norms float32 `[layers, kv_heads, tokens, norms]`.
        v: likewise.

    Attributes:
        layers: how many.
        tokens: how many a layer.
        nbytes: bytes of packed vectors and norms.
        row: its number in the tier below memory, once it is there by itself.
        whole: of a part that has no bytes of its own yet, the page that has them, and which of its layers these are.
        holders: how many sessions the ledger counts it for.
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
    def at(cls, home: PageSource, row: int, layers: int, tokens: int, nbytes: int) -> "Page":
        """A page that lies elsewhere."""
        page = cls._of(layers, tokens, nbytes)
        page.set_on_disk(home, row)
        return page

    @classmethod
    def _of(cls, layers: int, tokens: int, nbytes: int) -> "Page":
        page = cls.__new__(cls)
        page.layers, page.tokens, page.nbytes, page.ref_count = layers, tokens, nbytes, 0
        page._streams = page._source = page.page_id = page.parent = None
        return page

    @property
    def is_resident(self) -> bool:
        """Whether its bytes are in memory."""
        return self._streams is not None

    @property
    def streams(self) -> tuple[Encoded, Encoded]:
        """K and V; fetched if they are elsewhere, and whether they stay is decided there."""
        if self._streams is not None:
            return self._streams
        if self.parent:
            whole, layers = self.parent
            return whole.slice(layers, slice(None)).streams
        assert self._source is not None
        return self._source.load(self)

    @property
    def k(self) -> Encoded:
        """The stored K."""
        return self.streams[0]

    @property
    def v(self) -> Encoded:
        """The stored V."""
        return self.streams[1]

    def resident_copy(self) -> "Page":
        """This page, or one of the same content that is certainly in memory."""
        return self if self.is_resident else Page(*self.streams)

    def slice(self, layers: slice, tokens: slice) -> "Page":
        """A part of the page, sharing its memory."""
        return Page(*(Encoded(s.packed[layers, :, tokens], s.norms[layers, :, tokens]) for s in self.streams))

    def split(self, borders: Sequence[int]) -> list["Page"]:
        """The page as parts, of the layers from each border to the next.

        Nothing is read or copied for it: as long as they are given no bytes of their own, parts keep the page alive.
        """
        whole, first = (self.parent[0], self.parent[1].start) if self.parent else (self, 0)
        parts = []
        for a, b in pairwise(borders):
            part = Page._of(b - a, self.tokens, self.nbytes // self.layers * (b - a))
            part.parent = whole, slice(first + a, first + b)
            parts.append(part)
        return parts

    def set_on_disk(self, home: PageSource, row: int) -> None:
        """Note where its bytes lie beside memory."""
        self._source, self.page_id, self.parent = home, row, None

    def clear_resident(self) -> None:
        """Free its memory; it has to lie elsewhere too."""
        assert self._source is not None
        self._streams = None

    def set_resident(self, k: Encoded, v: Encoded) -> None:
        """Take its bytes into memory."""
        self._streams, self.parent = (k, v), None


def first_non_finite(host: Encoded, spec: CodecSpec) -> int:
    """Which vector, counted over all leading axes, is the first that is not finite."""
    values = host.packed.view(np.float16) if spec.codec.kind == "float16" else host.norms
    return int(np.argmin(np.isfinite(values).all(axis=-1)))


def on_host(stream: Encoded, backend: Backend) -> Encoded:
    """The same stream in host memory."""
    return Encoded(backend.to_host(stream.packed), backend.to_host(stream.norms))
