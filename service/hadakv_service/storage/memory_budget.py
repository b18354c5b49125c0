"""The only place that counts bytes of memory: what sessions take, and what work under way will take."""

from collections.abc import Iterable

from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session

# What Python keeps beside packed bytes. Measured with tracemalloc on CPython 3.11, and rounded up: 1105 bytes for a
# session with its entry, a long id and codecs of its own, 94 for a run of layers, 1290 for a page with its four arrays
# and about 300 for one whose arrays are elsewhere.
SESSION_NBYTES = 1280
RUN_NBYTES = 128
PAGE_NBYTES = 1536
AWAY_NBYTES = 384


def beside(session: Session) -> int:
    """Bytes a session is counted as without its pages."""
    return SESSION_NBYTES + len(session.runs) * RUN_NBYTES


def cost(session: Session) -> int:
    """Bytes a session is counted as with all of its pages in memory."""
    return beside(session) + session.nbytes + session.pages * PAGE_NBYTES


def least_cost(session: Session) -> int:
    """Bytes a session is counted as with none of its pages in memory."""
    return beside(session) + session.pages * AWAY_NBYTES


def page_cost(page: Page) -> int:
    """Bytes a page is counted as where it lies now."""
    return page.nbytes + PAGE_NBYTES if page.is_here else AWAY_NBYTES


class Ledger:
    """Counts.

    Attributes:
        budget: what may be stored.
        stored: what sessions hold in memory; a page that several hold is counted once.
        reserved: what work under way will store. Room for it is known to be there, but nobody is evicted before it is
            stored: until then both together may be more than the budget.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.stored = 0
        self.reserved = 0

    @property
    def used(self) -> int:
        """Bytes stored and reserved."""
        return self.stored + self.reserved

    @property
    def free(self) -> int:
        """Bytes that can be reserved with nobody evicted."""
        return self.budget - self.used

    def hold(self, pages: Iterable[Page]) -> None:
        """Note that each of the pages has one holder more."""
        for page in pages:
            if page.holders == 0:
                self.stored += page_cost(page)
            page.holders += 1

    def let_go(self, pages: Iterable[Page]) -> list[Page]:
        """Note that each of the pages has one holder less; those that have none left."""
        free = []
        for page in pages:
            page.holders -= 1
            if page.holders == 0:
                self.stored -= page_cost(page)
                free.append(page)
        return free

    def leave(self, page: Page) -> None:
        """Free a page's memory."""
        if page.holders:
            self.stored -= page.nbytes + PAGE_NBYTES - AWAY_NBYTES
        page.leave()
