"""NullStore: no disk."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from math import inf

from hadakv_service.storage.disk.interface import (
    CorruptData,
    DiskTransaction,
    DiskUnavailable,
    Key,
    Manifest,
    PageContent,
    PageInfo,
)


class NullStore:
    """A disk store that stores nothing."""

    name = "none"
    budget = 0
    used = 0
    available = 0
    sessions = 0
    failures = read_nbytes = written_nbytes = 0
    is_short_of_disk = False

    def page_nbytes(self, nbytes: int) -> int:
        """Return the bytes of the page."""
        return nbytes

    def transaction(self, *, sync: bool = False, counts: bool = True) -> AbstractContextManager[DiskTransaction]:  # noqa: ARG002 - nothing is counted
        """Fail: there is no disk."""
        raise DiskUnavailable("there is no disk store" + (" for a synced write" if sync else ""))

    def count(self, transaction: DiskTransaction) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def read_page(self, page_id: int) -> PageContent:
        """Fail: there are no pages."""
        raise CorruptData(f"page {page_id} is missing")

    def sessions_with_page(self, page_id: int) -> Sequence[Key]:  # noqa: ARG002 - there are none
        """Return no keys."""
        return ()

    def find(self, key: Key) -> tuple[Manifest, Mapping[int, PageInfo]] | None:  # noqa: ARG002 - there are none
        """Return None."""
        return None

    def list_manifests(self, owner: str, prefix: str, after: str, limit: int) -> list[tuple[str, Manifest]]:  # noqa: ARG002 - there are none
        """Return no manifests."""
        return []

    def nbytes(self, key: Key) -> int | None:  # noqa: ARG002 - there are none
        """Return None."""
        return None

    def check(self) -> None:
        """Do nothing."""

    def lru_session(self, pinned: Collection[Key], used_before: float = inf) -> Key | None:  # noqa: ARG002 - there are none
        """Return None."""
        return None

    def retained_nbytes(self, pinned: Collection[Key], used_since: float = inf) -> int:  # noqa: ARG002 - there are none
        """Return 0."""
        return 0

    def expired(self, now: float) -> Sequence[Key]:  # noqa: ARG002 - there are none
        """Return no keys."""
        return ()

    def owners(self) -> Mapping[str, tuple[int, int]]:
        """Return no owners."""
        return {}

    def forget_unserved(self, key: Key) -> bool:  # noqa: ARG002 - there are none
        """Return False."""
        return False

    def resume_clock(self, now: float) -> None:
        """Do nothing."""

    def save_clock(self, now: float) -> None:
        """Do nothing."""

    def vacuum(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
