"""No tier: nothing lies below memory."""

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
    """Takes nothing and has nothing."""

    name = "none"
    budget = 0
    used = 0
    available = 0
    sessions = 0
    failures = 0
    is_short_of_disk = False

    def page_nbytes(self, nbytes: int) -> int:
        """Pages are counted as what they are."""
        return nbytes

    def transaction(self, *, sync: bool = False) -> AbstractContextManager[DiskTransaction]:
        """There can be none."""
        raise DiskUnavailable("there is nothing below memory" + (" to keep this in" if sync else ""))

    def sync(self) -> None:
        """There is nothing to be lost."""

    def read_page(self, row: int) -> PageContent:
        """There is no page."""
        raise CorruptData(f"there is no page {row}")

    def sessions_with_page(self, row: int) -> Sequence[Key]:  # noqa: ARG002 - nobody has any
        """Nobody."""
        return ()

    def find(self, key: Key) -> tuple[Manifest, Mapping[int, PageInfo]] | None:  # noqa: ARG002 - of nobody
        """Nothing."""
        return None

    def list_manifests(self, owner: str, prefix: str, after: str, limit: int) -> list[tuple[str, Manifest]]:  # noqa: ARG002 - likewise
        """Nobody."""
        return []

    def nbytes(self, key: Key) -> int | None:  # noqa: ARG002 - likewise
        """Nothing."""
        return None

    def check(self) -> None:
        """There is nothing that could fail."""

    def lru_session(self, skip: Collection[Key], before: float = inf) -> Key | None:  # noqa: ARG002 - likewise
        """Nobody."""
        return None

    def retained_nbytes(self, keep: Collection[Key], since: float = inf) -> int:  # noqa: ARG002 - likewise
        """Nothing."""
        return 0

    def expired(self, now: float) -> Sequence[Key]:  # noqa: ARG002 - likewise
        """Nobody."""
        return ()

    def owners(self) -> Mapping[str, tuple[int, int]]:
        """Nobody."""
        return {}

    def vacuum(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
