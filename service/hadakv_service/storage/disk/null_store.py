"""No tier: nothing lies below memory."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from math import inf

from hadakv_service.storage.disk.interface import Content, Damaged, Key, Manifest, PageRow, TierFailed, Transaction


class NoTier:
    """Takes nothing and has nothing."""

    name = "none"
    budget = 0
    used = 0
    room = 0
    sessions = 0
    failures = 0
    is_short_of_disk = False

    def cost(self, nbytes: int) -> int:
        """Pages are counted as what they are."""
        return nbytes

    def transaction(self, *, sync: bool = False) -> AbstractContextManager[Transaction]:
        """There can be none."""
        raise TierFailed("there is nothing below memory" + (" to keep this in" if sync else ""))

    def sync(self) -> None:
        """There is nothing to be lost."""

    def content(self, row: int) -> Content:
        """There is no page."""
        raise Damaged(f"there is no page {row}")

    def holders(self, row: int) -> Sequence[Key]:  # noqa: ARG002 - nobody has any
        """Nobody."""
        return ()

    def find(self, key: Key) -> tuple[Manifest, Mapping[int, PageRow]] | None:  # noqa: ARG002 - of nobody
        """Nothing."""
        return None

    def page(self, owner: str, prefix: str, after: str, limit: int) -> list[tuple[str, Manifest]]:  # noqa: ARG002 - likewise
        """Nobody."""
        return []

    def nbytes(self, key: Key) -> int | None:  # noqa: ARG002 - likewise
        """Nothing."""
        return None

    def check(self) -> None:
        """There is nothing that could fail."""

    def coldest(self, skip: Collection[Key], before: float = inf) -> Key | None:  # noqa: ARG002 - likewise
        """Nobody."""
        return None

    def kept_nbytes(self, keep: Collection[Key], since: float = inf) -> int:  # noqa: ARG002 - likewise
        """Nothing."""
        return 0

    def expired(self, now: float) -> Sequence[Key]:  # noqa: ARG002 - likewise
        """Nobody."""
        return ()

    def owners(self) -> Mapping[str, tuple[int, int]]:
        """Nobody."""
        return {}

    def tidy(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
