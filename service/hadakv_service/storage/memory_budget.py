"""MemoryBudget: the byte counters; Reservation; HeldPages: pages that responses read.

No other module changes a counter.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Sequence

from hadakv_kernels import Encoded
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
# Pages that one job holds, and bytes that it loads.
HOLD_PAGES = 1000
HOLD_NBYTES = 1 << 20


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


class HeldPages:
    """Pages that responses still read, and how much of their memory no session counts.

    A response keeps a held page in memory until it is sent. It counts here while it is evicted or deleted: the memory
    budget does not count it then, and its memory is not free either. A watched page may leave memory and be read
    again. It counts here while it is deleted and only the response keeps it.

    Attributes:
        uncounted: bytes of these pages that the memory budget does not count.
    """

    def __init__(self) -> None:
        self.uncounted = 0
        self._streams: dict[Page, tuple[Encoded, Encoded]] = {}
        self._holders: Counter[Page] = Counter()
        self._watchers: Counter[Page] = Counter()

    def __bool__(self) -> bool:
        return bool(self._holders or self._watchers)

    def streams(self, page: Page) -> tuple[Encoded, Encoded] | None:
        """Return K and V of a held page; None if it is not held."""
        return self._streams.get(page)

    def hold(self, page: Page) -> None:
        """Hold a page for one more response. Load it if it is not in memory.

        Raises:
            SessionCorrupt, StorageUnavailable: the page cannot be loaded.
        """
        streams = self._streams.get(page) or page.load()
        before = self.uncounted_nbytes(page)
        self._streams[page] = streams
        self._holders[page] += 1
        self.recount(page, before)

    def watch(self, page: Page) -> None:
        """Watch a page for one more response."""
        before = self.uncounted_nbytes(page)
        self._watchers[page] += 1
        self.recount(page, before)

    def unhold(self, page: Page) -> None:
        """Hold a page for one response less."""
        before = self.uncounted_nbytes(page)
        self._holders[page] -= 1
        if not self._holders[page]:
            del self._holders[page], self._streams[page]
        self.recount(page, before)

    def unwatch(self, page: Page) -> None:
        """Watch a page for one response less."""
        before = self.uncounted_nbytes(page)
        self._watchers[page] -= 1
        if not self._watchers[page]:
            del self._watchers[page]
        self.recount(page, before)

    def uncounted_nbytes(self, page: Page) -> int:
        """Return the bytes of a page that only responses keep in memory."""
        in_memory = page in self._streams or (page in self._watchers and page.is_resident)
        return page.nbytes if in_memory and not (page.is_resident and page.ref_count) else 0

    def recount(self, page: Page, before: int) -> None:
        """Note a change of a page.

        Args:
            page: the page after the change.
            before: its `uncounted_nbytes` before the change.
        """
        self.uncounted += self.uncounted_nbytes(page) - before


class PageHold:
    """The pages of one response, until it is sent. Only the device thread uses it.

    Args:
        held: counts held and watched pages.
        pages: the pages.
        watch: let the pages leave memory; otherwise they are loaded and stay.
    """

    def __init__(self, held: HeldPages, pages: Sequence[Page], *, watch: bool = False) -> None:
        self._add = held.watch if watch else held.hold
        self._remove = held.unwatch if watch else held.unhold
        self._pages = pages
        self._count = 0

    def extend(self) -> bool:
        """Hold some more of the pages. Return whether there are more.

        Raises:
            SessionCorrupt, StorageUnavailable: a page cannot be loaded.
        """
        loaded = 0
        for page in self._pages[self._count : self._count + HOLD_PAGES]:
            loaded += 0 if page.is_resident else page.nbytes
            self._add(page)
            self._count += 1
            if loaded >= HOLD_NBYTES:
                break
        return self._count < len(self._pages)

    def release(self) -> None:
        """Hold none of the pages any longer. Further calls do nothing."""
        for page in self._pages[: self._count]:
            self._remove(page)
        self._pages, self._count = (), 0
