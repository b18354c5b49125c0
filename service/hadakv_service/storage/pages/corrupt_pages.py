"""CorruptPages: pages whose checksums did not match."""

import logging
from collections.abc import Callable, Sequence

from hadakv_service.errors import SessionCorrupt
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.disk.interface import CorruptData, DiskStoreError, Key, display_keys

log = logging.getLogger(__name__)

CORRUPT_DETAIL = "Some of its stored tokens are corrupt."


class CorruptPages:
    """Page ids that were found corrupt. They stay known for the life of the process.

    Args:
        mark_sessions: called with the id of a corrupt page. It marks the sessions in memory that have the page as
            corrupt, and returns the keys of all sessions that have it, in memory or on disk.
    """

    def __init__(self, mark_sessions: Callable[[int], Sequence[Key]]) -> None:
        self._mark_sessions = mark_sessions
        # Ids stay here after the pages are deleted. SQLite never uses an id twice.
        self._page_ids: set[int] = set()

    def record(self, page_id: int, error: CorruptData) -> None:
        """Record that a page is corrupt, mark its sessions, and log them once."""
        try:
            names = display_keys(self._mark_sessions(page_id))
        except DiskStoreError:
            names = "unknown, the disk cannot be read"
        if page_id in self._page_ids:
            return
        self._page_ids.add(page_id)
        # Log the text, not the exception: a kept log record would keep the frames of the error, and their arrays.
        log.error("%s; delete the sessions that have it and send them again: %s", str(error), names)

    def raise_if_corrupt(self, session: Session) -> None:
        """Reject a session that has corrupt pages.

        Raises:
            SessionCorrupt: at least one of its pages is known to be corrupt.
        """
        if self._page_ids and any(stored_page_id(page) in self._page_ids for page in session.all_pages()):
            raise SessionCorrupt(CORRUPT_DETAIL)


def stored_page_id(page: Page) -> int | None:
    """Return the id of the page on disk that has the bytes: the parent's for a slice."""
    return (page.parent[0] if page.parent else page).page_id
