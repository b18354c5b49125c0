"""A page: the bytes of some tokens, which never change, wherever they lie."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from hadakv_kernels import Encoded


class Home(Protocol):
    """Where the bytes of a page are while they are not in memory."""

    def fetch(self, page: "Page") -> tuple[Encoded, Encoded]:
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
        whole: if it is there as part of another page only, that page, and which of its layers these are.
        lender: the same for all that share the memory of one page; None if it has memory of its own.
        holders: how many sessions the ledger counts it for.
    """

    __slots__ = (
        "__weakref__",
        "_home",
        "_streams",
        "holders",
        "layers",
        "lender",
        "nbytes",
        "row",
        "tokens",
        "whole",
    )

    def __init__(self, k: Encoded, v: Encoded) -> None:
        self._streams: tuple[Encoded, Encoded] | None = (k, v)
        self._home: Home | None = None
        self.layers = int(k.packed.shape[0])
        self.tokens = int(k.packed.shape[2])
        self.nbytes = sum(int(stream.packed.nbytes + stream.norms.nbytes) for stream in (k, v))
        self.row: int | None = None
        self.whole: tuple[Page, slice] | None = None
        self.lender: object = None
        self.holders = 0

    @classmethod
    def at(cls, home: Home, row: int, layers: int, tokens: int, nbytes: int) -> "Page":
        """A page that lies elsewhere."""
        page = cls.__new__(cls)
        page.layers, page.tokens, page.nbytes, page.holders = layers, tokens, nbytes, 0
        page._streams = page.lender = None
        page.stay_at(home, row)
        return page

    @property
    def is_here(self) -> bool:
        """Whether its bytes are in memory."""
        return self._streams is not None

    @property
    def streams(self) -> tuple[Encoded, Encoded]:
        """K and V; fetched if they are elsewhere, and whether they stay is decided there."""
        if self._streams is None:
            assert self._home is not None
            return self._home.fetch(self)
        return self._streams

    @property
    def k(self) -> Encoded:
        """The stored K."""
        return self.streams[0]

    @property
    def v(self) -> Encoded:
        """The stored V."""
        return self.streams[1]

    def here(self) -> "Page":
        """This page, or one of the same content that is certainly in memory."""
        return self if self.is_here else Page(*self.streams)

    def cut(self, layers: slice, tokens: slice) -> "Page":
        """A part of the page, sharing its memory."""
        return Page(*(Encoded(s.packed[layers, :, tokens], s.norms[layers, :, tokens]) for s in self.streams))

    def split(self, borders: Sequence[int]) -> list["Page"]:
        """The page as parts, of the layers from each border to the next; nothing is read or copied for it."""
        return [self._part(slice(a, b)) for a, b in pairwise(borders)]

    def _part(self, layers: slice) -> "Page":
        if self._streams is not None:
            page = self.cut(layers, slice(None))
            page.lender = self.lender or self._streams
            return page
        assert self._home is not None
        whole, first = (self.whole[0], self.whole[1].start) if self.whole else (self, 0)
        count = layers.stop - layers.start
        page = Page.at(self._home, 0, count, self.tokens, self.nbytes // self.layers * count)
        page.row, page.whole = None, (whole, slice(first + layers.start, first + layers.stop))
        return page

    def stay_at(self, home: Home, row: int) -> None:
        """Note where its bytes lie beside memory."""
        self._home, self.row, self.whole = home, row, None

    def leave(self) -> None:
        """Free its memory, unless others share that; it has to lie elsewhere too."""
        assert self._home is not None
        self._streams = self.lender = None

    def come(self, k: Encoded, v: Encoded) -> None:
        """Take its bytes into memory again."""
        self._streams = k, v
