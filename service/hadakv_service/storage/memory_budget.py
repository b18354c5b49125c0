"""The only place that counts bytes of memory: what sessions take, and what work under way will take."""

from collections.abc import Iterable

from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session

# What Python keeps beside packed bytes. Measured with tracemalloc on CPython 3.11, and rounded up: 1105 bytes for a
# session with its entry, a long id and codecs of its own, 94 for a run of layers, 1290 for a page with its four arrays
# and about 300 for one whose arrays are elsewhere.
SESSION_OVERHEAD_NBYTES = 1280
RUN_OVERHEAD_NBYTES = 128
PAGE_OVERHEAD_NBYTES = 1536
EVICTED_PAGE_NBYTES = 384


def metadata_nbytes(session: Session) -> int:
    """Bytes a session is counted as without its pages."""
    return SESSION_OVERHEAD_NBYTES + len(session.runs) * RUN_OVERHEAD_NBYTES


def resident_nbytes(session: Session) -> int:
    """Bytes a session is counted as with all of its pages in memory."""
    return metadata_nbytes(session) + session.nbytes + session.pages * PAGE_OVERHEAD_NBYTES


def evicted_nbytes(session: Session) -> int:
    """Bytes a session is counted as with none of its pages in memory."""
    return metadata_nbytes(session) + session.pages * EVICTED_PAGE_NBYTES


def page_nbytes_in_memory(page: Page) -> int:
    """Bytes a page is counted as where it lies now."""
    return page.nbytes + PAGE_OVERHEAD_NBYTES if page.is_resident else EVICTED_PAGE_NBYTES


class MemoryBudget:
    """Counts.

    Attributes:
        budget: what may be stored.
        stored: what sessions hold in memory; a page that several hold is counted once.
        reserved: what work under way will store. Room for it is known to be there, but nobody is evicted before it is
            stored: until then both together may be more than the budget.
    """

    def __init__(self, budget: int) -> None:
        self.limit = budget
        self.stored = 0
        self.reserved = 0

    @property
    def used(self) -> int:
        """Bytes stored and reserved."""
        return self.stored + self.reserved

    @property
    def available(self) -> int:
        """Bytes that can be reserved with nobody evicted."""
        return self.limit - self.used

    def hold(self, pages: Iterable[Page]) -> None:
        """Note that each of the pages has one holder more."""
        for page in pages:
            if page.ref_count == 0:
                self.stored += page_nbytes_in_memory(page)
            page.ref_count += 1

    def let_go(self, pages: Iterable[Page]) -> list[Page]:
        """Note that each of the pages has one holder less; those that have none left."""
        free = []
        for page in pages:
            page.ref_count -= 1
            if page.ref_count == 0:
                self.stored -= page_nbytes_in_memory(page)
                free.append(page)
        return free

    def leave(self, page: Page) -> None:
        """Free a page's memory."""
        if page.ref_count:
            self.stored -= page.nbytes + PAGE_OVERHEAD_NBYTES - EVICTED_PAGE_NBYTES
        page.clear_resident()
