"""HeldPages: pages that responses still read; PageHold: those of one response."""

from collections import Counter
from collections.abc import Sequence

from hadakv_kernels import Encoded
from hadakv_service.sessions.page import Page

# Pages that one job holds, and bytes that it loads.
HOLD_PAGES = 1000
HOLD_NBYTES = 1 << 20


class HeldPages:
    """Pages that responses still read, and how much of their memory no session counts.

    A response keeps a held page in memory until it is sent. It counts here while it is evicted or deleted: the memory
    budget does not count it then, and its memory is not free either. A watched page may be evicted and
    loaded again. It counts here while it is deleted and only the response keeps it.

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
