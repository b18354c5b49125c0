"""BufferPool: load, evict, reference-count pages."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from weakref import WeakValueDictionary

from hadakv_kernels import Backend, Encoded
from hadakv_service.errors import SessionCorrupt, StorageUnavailable
from hadakv_service.sessions.layer_run import join
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.disk.interface import (
    CorruptData,
    DiskStore,
    DiskUnavailable,
    Key,
    Manifest,
    PageContent,
    PageInfo,
    display_key,
)
from hadakv_service.storage.disk.manifest import session_from_manifest
from hadakv_service.storage.memory_budget import MemoryBudget, load_nbytes, page_nbytes_in_memory
from hadakv_service.storage.pages.corrupt_pages import CorruptPages
from hadakv_service.storage.pages.held_pages import HeldPages

log = logging.getLogger(__name__)


class BufferPool:
    """Pages in memory. The only owner of their residency and of their reference counts.

    Args:
        memory: counts the bytes of pages.
        disk: store that pages are loaded from.
        backend: backend whose memory the pages use.
        on_memory_pressure: called with a number of bytes before a page is loaded that does not fit. It may evict pages
            of other sessions. It must not delete a session, and must not raise.
        on_corrupt_page: called with the id of a page whose checksum does not match; see `CorruptPages`.

    Attributes:
        corrupt: pages that were found corrupt.
        spills: number of pages evicted to make space.
        restores: number of pages loaded from disk.
        reads_from_memory: number of pages that reads found in memory.
        reads_from_disk: number of pages that reads found on disk only.
        held: pages that responses still read.
    """

    def __init__(
        self,
        memory: MemoryBudget,
        disk: DiskStore,
        backend: Backend | None,
        *,
        on_memory_pressure: Callable[[int], None],
        on_corrupt_page: Callable[[int], Sequence[Key]],
    ) -> None:
        self.corrupt = CorruptPages(on_corrupt_page)
        self.spills = 0
        self.restores = 0
        self.reads_from_memory = self.reads_from_disk = 0
        self.held = HeldPages()
        self._memory = memory
        self._disk = disk
        self._backend_or_none = backend
        self._on_memory_pressure = on_memory_pressure
        # Every page that is on disk and referenced by anything, so that loaded sessions share pages as before.
        self._pages_by_id: WeakValueDictionary[int, Page] = WeakValueDictionary()
        self._pinned: dict[Key, Collection[Page]] = {}

    @property
    def _backend(self) -> Backend:
        assert self._backend_or_none is not None, "pages cannot be moved without a backend"
        return self._backend_or_none

    def load(self, page: Page) -> tuple[Encoded, Encoded]:
        """Read an evicted page. It stays in memory if there is space for it.

        Returns:
            K and V in the backend's memory.

        Raises:
            SessionCorrupt: the checksum does not match.
            StorageUnavailable: the disk cannot be read.
        """
        k, v = self.held.streams(page) or self._load_from_disk(page)
        more = load_nbytes(page)
        if page.ref_count and self._memory.available < more:
            self._on_memory_pressure(more)
        if page.ref_count and self._memory.available >= more:
            uncounted = self.held.uncounted_nbytes(page)
            page.set_resident(k, v)
            self._memory.allocate(more)
            self.held.recount(page, uncounted)
        return k, v

    def _load_from_disk(self, page: Page) -> tuple[Encoded, Encoded]:
        content = self._read_from_disk(page)
        to_device = self._backend.to_device
        k, v = (Encoded(to_device(stream.packed), to_device(stream.norms)) for stream in content)
        self.restores += 1
        return k, v

    def _read_from_disk(self, page: Page) -> PageContent:
        assert page.page_id is not None
        try:
            return self._disk.read_page(page.page_id)
        except CorruptData as error:
            self.corrupt.record(page.page_id, error)
            raise SessionCorrupt(f"Stored tokens are corrupt: {error}.") from error
        except DiskUnavailable as error:
            raise StorageUnavailable(f"Stored tokens cannot be read now: {error}.") from error

    def count_read(self, pages: Iterable[Page]) -> None:
        """Count pages that a read is about to use. A slice is where its parent page is."""
        for page in pages:
            in_memory = page.is_resident or (page.parent is not None and page.parent[0].is_resident)
            self.reads_from_memory += in_memory
            self.reads_from_disk += not in_memory

    def evict(self, page: Page) -> None:
        """Free the memory of a page that is on disk. Responses that hold it keep its bytes until they are sent."""
        uncounted = self.held.uncounted_nbytes(page)
        if page.ref_count:
            self._memory.free(load_nbytes(page))
            self.spills += 1
        page.clear_resident()
        self.held.recount(page, uncounted)

    def retain(self, pages: Iterable[Page]) -> None:
        """Add one reference to each page."""
        is_reading = bool(self.held)
        for page in pages:
            if page.ref_count == 0:
                self._memory.allocate(page_nbytes_in_memory(page))
            if is_reading:
                self._add_references(page, 1)
            else:
                page.ref_count += 1

    def release(self, pages: Iterable[Page]) -> list[Page]:
        """Remove one reference from each page. Return the pages that have none left."""
        unreferenced, is_reading = [], bool(self.held)
        for page in pages:
            if is_reading:
                self._add_references(page, -1)
            else:
                page.ref_count -= 1
            if page.ref_count == 0:
                self._memory.free(page_nbytes_in_memory(page))
                unreferenced.append(page)
        return unreferenced

    def _add_references(self, page: Page, change: int) -> None:
        """Add references to a page that responses may hold, whose memory they count if no session has it."""
        uncounted = self.held.uncounted_nbytes(page)
        page.ref_count += change
        self.held.recount(page, uncounted)

    @contextmanager
    def pinned(self, key: Key, pages: Collection[Page]) -> Iterator[None]:
        """Keep pages on disk while an operation on a session still has to read them."""
        self.pin(key, pages)
        try:
            yield
        finally:
            self.unpin(key)

    def pin(self, key: Key, pages: Collection[Page]) -> None:
        """Keep pages on disk until `unpin`. Pages may be added to the collection."""
        self._pinned[key] = pages

    def unpin(self, key: Key) -> None:
        """Keep the pages that were pinned with a key no longer."""
        del self._pinned[key]

    def pinned_pages(self) -> dict[Key, Collection[Page]]:
        """Return the pinned pages by the session that they are pinned for."""
        return dict(self._pinned)

    def materialize(self, page: Page) -> None:
        """Give a slice its own copy of the bytes, if its parent is in memory.

        The slice must not be referenced by a session yet: its memory is part of a reservation.
        """
        assert not page.ref_count
        page.set_resident(*join([page], 0, self._backend).load())

    def add_on_disk(self, page: Page, page_id: int) -> None:
        """Record that a page was written."""
        page.set_on_disk(self, page_id)
        self._pages_by_id[page_id] = page

    def page_by_id(self, page_id: int) -> Page | None:
        """Return a page that is on disk, if anything still references the object."""
        return self._pages_by_id.get(page_id)

    def open_session(self, key: Key) -> tuple[Session, Manifest] | None:
        """Read the manifest of a session on disk. Its pages are loaded when they are read.

        Raises:
            SessionCorrupt: the manifest is corrupt, or a page is known to be.
            StorageUnavailable: the disk cannot be read.
        """
        try:
            found = self._disk.find(key)
        except CorruptData as error:
            log.error("session %s: %s; delete it and send it again", display_key(key), str(error))
            raise SessionCorrupt(f"The session is corrupt: {error}.") from error
        except DiskUnavailable as error:
            raise StorageUnavailable(f"The session cannot be read now: {error}.") from error
        if found is None:
            return None
        manifest, infos = found
        session = session_from_manifest(manifest, lambda page_id: self._page(page_id, infos[page_id]))
        self.corrupt.raise_if_corrupt(session)
        return session, manifest

    def _page(self, page_id: int, info: PageInfo) -> Page:
        page = self._pages_by_id.get(page_id)
        if page is None:
            page = self._pages_by_id[page_id] = Page.evicted(self, page_id, *info)
        return page

    def read_contents(self, pages: Iterable[Page]) -> Iterator[tuple[Page, PageContent]]:
        """Yield each page with its bytes in host memory. A parent page is read once for all of its slices.

        Raises:
            SessionCorrupt, StorageUnavailable: the parent page of a slice cannot be read.
        """
        parent, content = None, None
        for page in group_by_parent(pages):
            if page.is_resident:
                yield page, self._on_host(page)
                continue
            assert page.parent is not None
            if content is None or page.parent[0] is not parent:
                parent = page.parent[0]
                content = self._on_host(parent) if parent.is_resident else self._read_from_disk(parent)
            yield page, _slice_content(content, page.parent[1])

    def read_once(self, page: Page) -> PageContent:
        """Return K and V of a page in host memory. A page on disk is read, but does not stay in memory.

        Raises:
            SessionCorrupt: the checksum does not match.
            StorageUnavailable: the disk cannot be read.
        """
        if page.is_resident:
            return self._on_host(page)
        content = self._read_from_disk(page)
        self.restores += 1
        return content

    def _on_host(self, page: Page) -> PageContent:
        to_host = self._backend.to_host
        return PageContent(*(Encoded(to_host(stream.packed), to_host(stream.norms)) for stream in page.load()))


def group_by_parent(pages: Iterable[Page]) -> list[Page]:
    """Order pages so that slices of one parent are adjacent. The parent then needs to be read only once."""
    groups: dict[Page | None, list[Page]] = {}
    for page in pages:
        groups.setdefault(page.parent[0] if page.parent else None, []).append(page)
    return list(chain.from_iterable(groups.values()))


def _slice_content(content: PageContent, layers: slice) -> PageContent:
    """Copy some layers of the content of a page. A view would keep all of it."""
    return PageContent(*(Encoded(s.packed[layers].copy(), s.norms[layers].copy()) for s in content))
