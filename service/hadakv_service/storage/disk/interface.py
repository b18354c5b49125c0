"""What lies below memory: pages that had no room, and of each session how they go together.

A tier knows rows and bytes, and nothing of codecs or of who is used when. The embedded one is SQLite; one that several
machines share would stand behind the same interface.

TierError
├── TierFailed    a full disk, a lost file: nothing of what was under way happened, and it may go better the next time
├── Damaged       what is stored is not what was written
└── TierRefused   there is something at that place which this version must not touch
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Protocol

from hadakv_kernels import Encoded

Key = tuple[str, str]


def display_key(key: Key) -> str:
    """A session's name in the log, where somebody has to do something about it."""
    return repr("/".join(filter(None, key)))


class DiskStoreError(Exception):
    """Base of what can go wrong below memory."""


class DiskUnavailable(DiskStoreError):
    """It could not be done, and nothing of it was."""


class CorruptData(DiskStoreError):
    """Stored bytes are not those that were written."""


class DataDirectoryError(DiskStoreError):
    """The place is another version's, another program's, or in use."""


class PageContent(NamedTuple):
    """A page's streams in host memory: uint8 `[layers, kv_heads, tokens, row_bytes]` with float32 norms, C order."""

    k: Encoded
    v: Encoded


@dataclass(frozen=True, slots=True)
class RunManifest:
    """A run of layers.

    Attributes:
        layers: how many.
        base: position of the first stored token.
        length: position after the last.
        full: how many of its pages are full.
        place: number of the first page; counts on over pages that left a window.
        pages: rows of its pages, in order.
    """

    layers: int
    base: int
    length: int
    full: int
    place: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of a session but the bytes.

    Attributes:
        options: its codecs, axes and rules, as JSON knows them.
        runs: its layers, in order.
        nbytes: what its tokens take packed.
        created: in unix seconds.
        last_used: likewise.
        expires: likewise; None is never.
        permanent: whether only its owner, or its age, may end it.
    """

    options: Mapping[str, Any]
    runs: tuple[RunManifest, ...]
    nbytes: int
    created: float
    last_used: float
    expires: float | None
    protected: bool


class PageInfo(NamedTuple):
    """What is known of a page without reading it."""

    layers: int
    tokens: int
    nbytes: int


class DiskTransaction(Protocol):
    """Changes that happen together or not at all."""

    def add_page(self, content: PageContent) -> int:
        """Write a page; its row."""
        ...

    def put(self, key: Key, manifest: Manifest, old: Manifest | None) -> list[int]:
        """Write a session's manifest over its old one, if any; rows of the pages that it no longer holds."""
        ...

    def remove(self, key: Key) -> list[int]:
        """Remove a session's manifest if there is one; rows of the pages that it held."""
        ...

    def touch(self, key: Key, last_used: float, expires: float | None) -> None:
        """Note when a session was used."""
        ...

    def remove_pages(self, rows: Collection[int]) -> None:
        """Remove those of the pages that no manifest holds."""
        ...


class DiskStore(Protocol):
    """A place for pages and manifests. One thread uses it.

    Attributes:
        name: what people call it.
        budget: bytes it may take; 0 for a tier that takes nothing.
        used: bytes counted against that.
        sessions: how many manifests there are.
        failures: how often something could not be done.
    """

    name: str
    budget: int
    used: int
    sessions: int
    failures: int

    @property
    def available(self) -> int:
        """Bytes that may be added now.

        Raises:
            TierFailed: nobody knows.
        """
        ...

    @property
    def is_short_of_disk(self) -> bool:
        """Whether less may be added than the budget allows, for want of room on the disk it lies on.

        Raises:
            TierFailed: nobody knows.
        """
        ...

    def page_nbytes(self, nbytes: int) -> int:
        """What a page of so many bytes is counted as."""
        ...

    def transaction(self, *, sync: bool = False) -> AbstractContextManager[DiskTransaction]:
        """Changes, made at the end of the block; with `sync` they outlive a loss of power from then on.

        Raises:
            TierFailed: they could not be made.
        """
        ...

    def sync(self) -> None:
        """Let all that was changed outlive a loss of power.

        Raises:
            TierFailed: it may not.
        """
        ...

    def read_page(self, row: int) -> PageContent:
        """Read a page.

        Raises:
            Damaged: it is not what was written.
            TierFailed: it cannot be read.
        """
        ...

    def sessions_with_page(self, row: int) -> Sequence[Key]:
        """Whose manifests hold a page.

        Raises:
            Damaged, TierFailed: they cannot be read.
        """
        ...

    def find(self, key: Key) -> tuple[Manifest, Mapping[int, PageInfo]] | None:
        """A session's manifest, and what is known of its pages.

        Raises:
            Damaged: it is not what was written.
            TierFailed: it cannot be read.
        """
        ...

    def list_manifests(self, owner: str, prefix: str, after: str, limit: int) -> list[tuple[str, Manifest]]:
        """Up to `limit` manifests of an owner in order of id, without their pages; damaged ones are left out."""
        ...

    def nbytes(self, key: Key) -> int | None:
        """What a session's manifest says that its tokens take packed, damaged or not; None if there is none."""
        ...

    def check(self) -> None:
        """See whether it can be written.

        Raises:
            TierFailed: it cannot.
        """
        ...

    def lru_session(self, skip: Collection[Key], before: float = inf) -> Key | None:
        """Who was used least recently among those that are not permanent, if that was before a moment."""
        ...

    def retained_nbytes(self, keep: Collection[Key], since: float = inf) -> int:
        """Bytes counted for pages of permanent sessions, of these, and of those that were used since a moment."""
        ...

    def expired(self, now: float) -> Sequence[Key]:
        """Some of those who have expired; nobody if there is none."""
        ...

    def owners(self) -> Mapping[str, tuple[int, int]]:
        """Of each owner the packed bytes and the number of sessions."""
        ...

    def vacuum(self) -> None:
        """Give back room that is no longer needed."""
        ...

    def close(self) -> None:
        """Bring everything to where it stays, and let go of it."""
        ...
