"""DiskStore, DiskTransaction, Manifest, PageInfo, DiskStoreError.

A disk store has pages, and a manifest for each session. It knows nothing of codecs or of LRU order in memory. The
embedded one is SQLite. A store that several machines share could implement the same interface.

DiskStoreError
├── DiskUnavailable      a full disk, a lost file: nothing of the operation happened, and a retry may succeed
├── CorruptData          stored bytes do not match their checksum
└── DataDirectoryError   the data directory has something that this version must not touch
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Protocol

from hadakv_kernels import Encoded

Key = tuple[str, str]
# Maximum number of sessions that one log line names. Very many sessions may share a page.
MAX_LOGGED_SESSIONS = 10


def display_key(key: Key) -> str:
    """Return the name of a session for the log, as 'tenant/id'."""
    return repr("/".join(filter(None, key)))


def display_keys(keys: Sequence[Key]) -> str:
    """Return the names of sessions for the log, at most `MAX_LOGGED_SESSIONS` of them."""
    more = f", and {len(keys) - MAX_LOGGED_SESSIONS} more" if len(keys) > MAX_LOGGED_SESSIONS else ""
    return ", ".join(map(display_key, keys[:MAX_LOGGED_SESSIONS])) + more or "none is left"


class DiskStoreError(Exception):
    """Base of the errors of a disk store."""


class DiskUnavailable(DiskStoreError):
    """The disk cannot be read or written. Nothing of the operation was done."""


class CorruptData(DiskStoreError):
    """Stored bytes do not match their checksum."""


class DataDirectoryError(DiskStoreError):
    """The data directory belongs to another version or program, is in use, or cannot be used."""


class PageContent(NamedTuple):
    """K and V of a page in host memory: uint8 `[layers, kv_heads, tokens, row_bytes]` with float32 norms, C order."""

    k: Encoded
    v: Encoded


@dataclass(frozen=True, slots=True)
class RunManifest:
    """A run of layers in a manifest.

    Attributes:
        layers: number of layers.
        start: position of the first stored token.
        stop: position after the last stored token.
        full_pages: number of full pages.
        first_page: index of the first page. Pages that have left the window are counted too.
        pages: ids of the pages, in order.
        is_gap: whether the layers do not exist; see `LayerRun`.
    """

    layers: int
    start: int
    stop: int
    full_pages: int
    first_page: int
    pages: tuple[int, ...]
    is_gap: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """A session without the bytes of its pages.

    Attributes:
        options: codecs, axes, window, TTL and durability, as JSON values.
        runs: runs of layers, in order.
        nbytes: packed bytes of the tokens.
        created: creation time, Unix seconds.
        last_used: time of last use, Unix seconds.
        expires: time at which the session expires, Unix seconds; None for never.
        protected: whether the session may be deleted only by its owner or when it expires.
    """

    options: Mapping[str, Any]
    runs: tuple[RunManifest, ...]
    nbytes: int
    created: float
    last_used: float
    expires: float | None
    protected: bool


class PageInfo(NamedTuple):
    """Properties of a page that are known without reading it.

    Attributes:
        layers: number of layers.
        tokens: number of tokens in each layer.
        nbytes: bytes of packed vectors and norms.
    """

    layers: int
    tokens: int
    nbytes: int


class DiskTransaction(Protocol):
    """Changes that are made together or not at all.

    Attributes:
        used: change of the bytes counted against the budget.
        sessions: change of the number of manifests.
        written_nbytes: bytes of the written pages and manifests.
    """

    used: int
    sessions: int
    written_nbytes: int

    def add_page(self, content: PageContent) -> int:
        """Write a page. Return its id."""
        ...

    def put(self, key: Key, manifest: Manifest, old: Manifest | None) -> list[int]:
        """Write the manifest of a session over the old one, if any. Return the ids of pages that it no longer has."""
        ...

    def remove(self, key: Key) -> list[int]:
        """Delete the manifest of a session, if there is one. Return the ids of its pages."""
        ...

    def touch(self, key: Key, last_used: float, expires: float | None) -> None:
        """Set the time of last use of a session."""
        ...

    def remove_pages(self, page_ids: Collection[int]) -> None:
        """Delete those of the pages that no manifest has."""
        ...


class DiskStore(Protocol):
    """A store of pages and manifests. One transaction at a time is open; reads on other threads wait for it.

    Attributes:
        name: name in metrics.
        budget: bytes that the store may take; 0 if it stores nothing.
        used: bytes counted against the budget.
        sessions: number of manifests.
        failures: number of failed operations.
        read_nbytes: bytes of the pages that were read.
        written_nbytes: bytes of the pages and manifests that were committed.
    """

    name: str
    budget: int
    used: int
    sessions: int
    failures: int
    read_nbytes: int
    written_nbytes: int

    @property
    def available(self) -> int:
        """Bytes that may be added now.

        Raises:
            DiskUnavailable: the free space cannot be determined.
        """
        ...

    @property
    def is_short_of_disk(self) -> bool:
        """Whether the file system has less free space than the budget allows to add.

        Raises:
            DiskUnavailable: the free space cannot be determined.
        """
        ...

    def page_nbytes(self, nbytes: int) -> int:
        """Return the bytes counted for a page of `nbytes` bytes."""
        ...

    def transaction(self, *, sync: bool = False, counts: bool = True) -> AbstractContextManager[DiskTransaction]:
        """Open a transaction. It commits at the end of the block.

        Args:
            sync: whether the changes must survive a power loss once they are committed.
            counts: whether to change `used` and `sessions` at the end. Otherwise the caller calls `count`.

        Raises:
            DiskUnavailable: the transaction failed. Nothing was changed.
        """
        ...

    def count(self, transaction: DiskTransaction) -> None:
        """Add the changes of a committed transaction to `used` and `sessions`."""
        ...

    def sync(self) -> None:
        """Make all committed changes survive a power loss.

        Raises:
            DiskUnavailable: the disk cannot be synced.
        """
        ...

    def read_page(self, page_id: int) -> PageContent:
        """Read a page.

        Raises:
            CorruptData: the checksum does not match.
            DiskUnavailable: the disk cannot be read.
        """
        ...

    def sessions_with_page(self, page_id: int) -> Sequence[Key]:
        """Return the keys of sessions whose manifests have a page.

        Raises:
            CorruptData, DiskUnavailable: the manifests cannot be read.
        """
        ...

    def find(self, key: Key) -> tuple[Manifest, Mapping[int, PageInfo]] | None:
        """Read the manifest of a session. Return it and the properties of its pages, or None if there is none.

        Raises:
            CorruptData: the checksum does not match.
            DiskUnavailable: the disk cannot be read.
        """
        ...

    def list_manifests(self, owner: str, prefix: str, after: str, limit: int) -> list[tuple[str, Manifest]]:
        """List up to `limit` manifests of an owner in order of id, without pages. Corrupt ones are left out."""
        ...

    def nbytes(self, key: Key) -> int | None:
        """Return the packed bytes of a session, even of a corrupt one; None if there is none."""
        ...

    def check(self) -> None:
        """Check that the store can be written.

        Raises:
            DiskUnavailable: it cannot.
        """
        ...

    def lru_session(self, pinned: Collection[Key], used_before: float = inf) -> Key | None:
        """Return the least recently used session that is neither protected nor pinned.

        Args:
            pinned: keys of sessions to leave out.
            used_before: return only a session last used before this time, Unix seconds.
        """
        ...

    def retained_nbytes(self, pinned: Collection[Key], used_since: float = inf) -> int:
        """Return the bytes counted for pages of sessions that are protected, pinned, or were used since a time."""
        ...

    def expired(self, now: float) -> Sequence[Key]:
        """Return the keys of some expired sessions."""
        ...

    def owners(self) -> Mapping[str, tuple[int, int]]:
        """Return the packed bytes and the number of sessions of each owner."""
        ...

    def forget_unserved(self, key: Key) -> bool:
        """Delete what the store has of a session but does not serve. Return whether there was such a session.

        Raises:
            DiskStoreError: the disk cannot be read or written.
        """
        ...

    def resume_clock(self, now: float) -> None:
        """Set the times of last use back, if the clock was set back since the last process ended.

        Args:
            now: present time, Unix seconds. No session is used later than that, or ages less than before.
        """
        ...

    def save_clock(self, now: float) -> None:
        """Store the present time for `resume_clock`, if a session may expire.

        Raises:
            DiskUnavailable: the disk cannot be written.
        """
        ...

    def vacuum(self) -> None:
        """Give free space back to the file system."""
        ...

    def close(self) -> None:
        """Complete all writes and close the store."""
        ...
