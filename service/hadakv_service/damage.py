"""What was read from the tier and is not what was written: who has it, and that it stays known."""

import logging
from collections.abc import Callable, Iterable

from hadakv_service.errors import SessionDamaged
from hadakv_service.page import Page
from hadakv_service.session import Session
from hadakv_service.tiers import Damaged, Key, Tier, TierError

log = logging.getLogger(__name__)


class Damage:
    """The rows that were found to be damaged, as long as the process lives.

    Args:
        tier: which has the rows.

    Attributes:
        having: who has a page of that row.
    """

    def __init__(self, tier: Tier) -> None:
        self.having: Callable[[int], Iterable[Key]] = tier.holders
        # They stay here when they are removed, as no number is given twice.
        self._rows: set[int] = set()

    def note(self, row: int, error: Damaged) -> None:
        """Note that a row is damaged, and say whose tokens these were."""
        if row in self._rows:
            return
        self._rows.add(row)
        try:
            names = ", ".join(map(called, self.having(row)))
        except TierError:
            names = "which cannot be told"
        # As text: whoever keeps the record would keep the error's frames, and all that they have.
        log.error("%s; delete the sessions that have it, and send them again: %s", str(error), names)

    def check(self, session: Session) -> None:
        """Refuse a session that has damaged rows: what is left of it is of no use.

        Raises:
            SessionDamaged: it is such a session.
        """
        if self._rows and any(row_of(page) in self._rows for page in session.all_pages()):
            raise SessionDamaged("Some of its stored tokens are damaged.")


def row_of(page: Page) -> int | None:
    """Where a page's bytes lie in the tier, be it as a part of another."""
    return (page.whole[0] if page.whole else page).row


def called(key: Key) -> str:
    """A session's name in the log, where somebody has to do something about it."""
    return repr("/".join(filter(None, key)))
