"""What was read from the tier and is not what was written: who has it, and that it stays known."""

import logging
from collections.abc import Callable, Sequence

from hadakv_service.errors import SessionDamaged
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.disk.interface import Damaged, Key, Tier, TierError, called

log = logging.getLogger(__name__)

KNOWN = "Some of its stored tokens are damaged."
# Sessions that the log names; a page may be shared by very many.
MOST_NAMES = 10


class Damage:
    """The rows that were found to be damaged, as long as the process lives.

    Args:
        tier: which has the rows.

    Attributes:
        spread: lets every session in memory that has a page of that row know; gives those that have one anywhere.
    """

    def __init__(self, tier: Tier) -> None:
        self.spread: Callable[[int], Sequence[Key]] = tier.holders
        # They stay here when they are removed, as no number is given twice.
        self._rows: set[int] = set()

    def note(self, row: int, error: Damaged) -> None:
        """Note that a row is damaged, and say whose tokens these were."""
        try:
            names = _names(self.spread(row))
        except TierError:
            names = "which cannot be told"
        if row in self._rows:
            return
        self._rows.add(row)
        # As text: whoever keeps the record would keep the error's frames, and all that they have.
        log.error("%s; delete the sessions that have it, and send them again: %s", str(error), names)

    def check(self, session: Session) -> None:
        """Refuse a session that comes back and has damaged rows: what is left of it is of no use.

        Raises:
            SessionDamaged: it is such a session.
        """
        if self._rows and any(row_of(page) in self._rows for page in session.all_pages()):
            raise SessionDamaged(KNOWN)


def _names(keys: Sequence[Key]) -> str:
    more = f", and {len(keys) - MOST_NAMES} more" if len(keys) > MOST_NAMES else ""
    return ", ".join(map(called, keys[:MOST_NAMES])) + more or "none is left"


def row_of(page: Page) -> int | None:
    """Where a page's bytes lie in the tier, be it as a part of another."""
    return (page.whole[0] if page.whole else page).row
