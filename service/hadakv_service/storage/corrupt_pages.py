"""What was read from the tier and is not what was written: who has it, and that it stays known."""

import logging
from collections.abc import Callable, Sequence

from hadakv_service.errors import SessionCorrupt
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.disk.interface import CorruptData, DiskStore, DiskStoreError, Key, display_key

log = logging.getLogger(__name__)

CORRUPT_DETAIL = "Some of its stored tokens are damaged."
# Sessions that the log names; a page may be shared by very many.
MOST_NAMES = 10


class CorruptPages:
    """The rows that were found to be damaged, as long as the process lives.

    Args:
        tier: which has the rows.

    Attributes:
        spread: lets every session in memory that has a page of that row know; gives those that have one anywhere.
    """

    def __init__(self, tier: DiskStore) -> None:
        self.mark_sessions: Callable[[int], Sequence[Key]] = tier.sessions_with_page
        # They stay here when they are removed, as no number is given twice.
        self._rows: set[int] = set()

    def record(self, row: int, error: CorruptData) -> None:
        """Note that a row is damaged, and say whose tokens these were."""
        try:
            names = _names(self.mark_sessions(row))
        except DiskStoreError:
            names = "which cannot be told"
        if row in self._rows:
            return
        self._rows.add(row)
        # As text: whoever keeps the record would keep the error's frames, and all that they have.
        log.error("%s; delete the sessions that have it, and send them again: %s", str(error), names)

    def raise_if_corrupt(self, session: Session) -> None:
        """Refuse a session that comes back and has damaged rows: what is left of it is of no use.

        Raises:
            SessionDamaged: it is such a session.
        """
        if self._rows and any(row_of(page) in self._rows for page in session.all_pages()):
            raise SessionCorrupt(CORRUPT_DETAIL)


def _names(keys: Sequence[Key]) -> str:
    more = f", and {len(keys) - MOST_NAMES} more" if len(keys) > MOST_NAMES else ""
    return ", ".join(map(display_key, keys[:MOST_NAMES])) + more or "none is left"


def row_of(page: Page) -> int | None:
    """Where a page's bytes lie in the tier, be it as a part of another."""
    return (page.parent[0] if page.parent else page).page_id
