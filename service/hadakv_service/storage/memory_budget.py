"""MemoryBudget: the byte counters; Reservation. No other module changes a counter."""

from collections.abc import Collection, Hashable

from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.disk.interface import Key

# Memory that Python objects take besides the packed bytes. Measured with tracemalloc on CPython 3.11 and rounded up:
# 1105 bytes for a session with its record, a long id and its own codecs, 94 for a run of layers, 1290 for a page with
# its four arrays, and about 300 for an evicted page.
SESSION_OVERHEAD_NBYTES = 1280
RUN_OVERHEAD_NBYTES = 128
PAGE_OVERHEAD_NBYTES = 1536
EVICTED_PAGE_NBYTES = 384


def metadata_nbytes(session: Session) -> int:
    """Return the bytes counted for a session without its pages."""
    return SESSION_OVERHEAD_NBYTES + len(session.runs) * RUN_OVERHEAD_NBYTES


def resident_nbytes(session: Session) -> int:
    """Return the bytes counted for a session with all of its pages in memory."""
    return metadata_nbytes(session) + session.nbytes + session.pages * PAGE_OVERHEAD_NBYTES


def evicted_nbytes(session: Session) -> int:
    """Return the bytes counted for a session with all of its pages evicted."""
    return metadata_nbytes(session) + session.pages * EVICTED_PAGE_NBYTES


def load_nbytes(page: Page) -> int:
    """Return how many more bytes are counted for a page in memory than for the same page evicted."""
    return page.nbytes + PAGE_OVERHEAD_NBYTES - EVICTED_PAGE_NBYTES


def page_nbytes_in_memory(page: Page) -> int:
    """Return the bytes counted for a page in its present state."""
    return page.nbytes + PAGE_OVERHEAD_NBYTES if page.is_resident else EVICTED_PAGE_NBYTES


class Reservation:
    """Memory promised to one operation until it commits or fails.

    Args:
        memory: counter of the reserved bytes.
        key: session that the operation writes.
        nbytes: reserved bytes.
        pinned: keys of sessions that must not be deleted for this operation: its own, and those of other jobs.
        slices_nbytes: stored bytes of pages that the operation splits; `commit` materializes their slices.
        bypasses_memory: whether memory has no space for all of the data, so that some is written to disk at once.
    """

    __slots__ = ("_memory", "bypasses_memory", "key", "nbytes", "pinned", "slices_nbytes")

    def __init__(
        self,
        memory: "MemoryBudget",
        key: Key,
        nbytes: int,
        pinned: Collection[Hashable] = (),
        *,
        slices_nbytes: int = 0,
        bypasses_memory: bool = False,
    ) -> None:
        self._memory = memory
        self.key = key
        self.nbytes = 0
        self.pinned = pinned
        self.slices_nbytes = slices_nbytes
        self.bypasses_memory = bypasses_memory
        memory._reserve(self, nbytes)

    def resize(self, nbytes: int) -> None:
        """Reserve more or fewer bytes than before. The caller has checked that space can be made for them."""
        self._memory._release(self)
        self._memory._reserve(self, nbytes)

    def release(self) -> None:
        """Give the reserved bytes back. Further calls do nothing."""
        self._memory._release(self)


class MemoryBudget:
    """Counters of the memory that sessions take.

    A reservation may exceed the free memory: the store checks that other sessions can make space for it, and evicts
    them only when the operation commits. Until then `stored` and `reserved` together may be more than `limit`.

    Args:
        limit: bytes that may be stored.

    Attributes:
        limit: bytes that may be stored.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._stored = 0
        self._reserved = 0

    @property
    def stored(self) -> int:
        """Bytes that sessions hold in memory. A page that several sessions share is counted once."""
        return self._stored

    @property
    def reserved(self) -> int:
        """Bytes that operations in progress will store."""
        return self._reserved

    @property
    def used(self) -> int:
        """Bytes stored and reserved."""
        return self._stored + self._reserved

    @property
    def available(self) -> int:
        """Bytes that can be reserved without evicting anything."""
        return self.limit - self._stored - self._reserved

    def reserve(self, key: Key, nbytes: int, pinned: Collection[Hashable] = ()) -> Reservation:
        """Reserve bytes for an operation. The caller has checked that space can be made for them."""
        return Reservation(self, key, nbytes, pinned)

    def allocate(self, nbytes: int) -> None:
        """Count bytes that are stored from now on."""
        self._stored += nbytes

    def free(self, nbytes: int) -> None:
        """Count bytes that are no longer stored."""
        assert nbytes <= self._stored, "more bytes freed than were stored"
        self._stored -= nbytes

    def _reserve(self, reservation: Reservation, nbytes: int) -> None:
        assert nbytes >= 0, "a reservation cannot be negative"
        reservation.nbytes = nbytes
        self._reserved += nbytes

    def _release(self, reservation: Reservation) -> None:
        self._reserved -= reservation.nbytes
        reservation.nbytes = 0
