"""DiskWriter: opens every write transaction, one at a time in the background; collects garbage pages."""

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.buffer_pool import BufferPool
from hadakv_service.storage.disk.interface import DiskStore, DiskTransaction, Key, Manifest, PageContent
from hadakv_service.storage.disk.manifest import manifest_from_session

# Pages that one transaction deletes, so that no request waits long for it.
GARBAGE_BATCH = 64
BACKGROUND_GARBAGE_BATCH = 256


class SessionWrite(NamedTuple):
    """A session to write.

    Attributes:
        key: key of the session.
        session: value to write.
        created: creation time, Unix seconds.
        last_used: time of last use, Unix seconds.
        old_manifest: manifest on disk that this replaces; None if there is none.
    """

    key: Key
    session: Session
    created: float
    last_used: float
    old_manifest: Manifest | None


def unwritten_pages(session: Session) -> list[Page]:
    """Return the pages of a session that are not on disk."""
    return [page for page in session.all_pages() if page.page_id is None]


class WriteBatch(NamedTuple):
    """Changes that one transaction makes.

    Attributes:
        sessions: sessions to write, with their pages that are not on disk yet.
        pages: further pages to write, which no manifest references yet.
        removed: keys of sessions whose manifests are deleted. Their pages become garbage.
        sync: whether the changes must survive a power loss once the transaction is committed.
    """

    sessions: Sequence[SessionWrite] = ()
    pages: Sequence[Page] = ()
    removed: Collection[Key] = ()
    sync: bool = False

    def unwritten_pages(self) -> list[Page]:
        """Return the pages of the batch that are not on disk yet, each once."""
        pages = chain(self.pages, *(write.session.all_pages() for write in self.sessions))
        return [page for page in dict.fromkeys(pages) if page.page_id is None]


class WrittenBatch(NamedTuple):
    """Result of a transaction.

    Attributes:
        page_ids: ids of the pages that were written.
        manifests: manifests of the sessions, in the order of the batch.
        dropped: ids of pages that no longer belong to the sessions that were written or removed.
        transaction: the transaction, whose counters are still to be added.
    """

    page_ids: dict[Page, int]
    manifests: list[Manifest]
    dropped: list[int]
    transaction: DiskTransaction


class _InFlight(NamedTuple):
    """A transaction in the background."""

    batch: WriteBatch
    garbage: Collection[int]
    future: "Future[WrittenBatch]"
    on_end: Callable[[WrittenBatch | Exception], None]


class DiskWriter:
    """Writer of the disk store.

    One transaction at a time may be written in the background. Every other method that uses the disk first settles it:
    it waits for the end, and records what was written. So each change of a session sees a background write either
    complete, or, if it needs no disk, not yet recorded.

    Args:
        disk: store to write to.
        pool: pool that owns the pages.

    Attributes:
        collects_in_background: whether `begin` collects garbage, so that no request has to.
    """

    def __init__(self, disk: DiskStore, pool: BufferPool) -> None:
        self.collects_in_background = False
        self._disk = disk
        self._pool = pool
        # Ids of pages that may no longer be needed.
        self._garbage_candidates: set[int] = set()
        self._in_flight: _InFlight | None = None
        self._thread: ThreadPoolExecutor | None = None

    def write(self, batch: WriteBatch) -> list[Manifest]:
        """Write a batch in one transaction. Return the manifests of its sessions.

        Raises:
            DiskUnavailable: the disk cannot be written. Nothing was written.
            SessionCorrupt, StorageUnavailable: the parent page of a slice cannot be read. Nothing was written.
        """
        self.settle()
        written = self._execute(batch, self._pool.read_contents(batch.unwritten_pages()))
        self._record(written)
        return written.manifests

    def _execute(
        self, batch: WriteBatch, contents: Iterable[tuple[Page, PageContent]], garbage: Collection[int] = ()
    ) -> WrittenBatch:
        with self._disk.transaction(sync=batch.sync, counts=False) as transaction:
            written = WrittenBatch({}, [], [], transaction)
            page_ids = written.page_ids
            for page, content in contents:
                page_ids[page] = transaction.add_page(content)
            for write in batch.sessions:
                manifest = manifest_from_session(write.session, write.created, write.last_used, page_ids)
                written.manifests.append(manifest)
                written.dropped.extend(transaction.put(write.key, manifest, write.old_manifest))
            for key in batch.removed:
                written.dropped.extend(transaction.remove(key))
            if garbage:
                transaction.remove_pages(garbage)
        if batch.sync and not (batch.sessions or batch.pages or batch.removed):
            # An empty transaction does not sync.
            self._disk.sync()
        return written

    def _record(self, written: WrittenBatch) -> None:
        for page, page_id in written.page_ids.items():
            self._pool.add_on_disk(page, page_id)
        self._garbage_candidates.update(written.dropped)
        self._disk.count(written.transaction)

    def begin(
        self, batch: WriteBatch, garbage: Collection[int], on_end: Callable[[WrittenBatch | Exception], None]
    ) -> "Future[WrittenBatch]":
        """Begin to write a batch in the background. All of its pages are in memory.

        Args:
            batch: what to write.
            garbage: ids of pages to delete, from `unreferenced_garbage`.
            on_end: called by `settle` with the result, or with the error: then nothing was written.
        """
        assert self._in_flight is None, "the write before it was not settled"
        # The device may be used on this thread only, so read all pages here.
        contents = list(self._pool.read_contents(batch.unwritten_pages()))
        self._thread = self._thread or ThreadPoolExecutor(1, "hadakv-disk")
        future = self._thread.submit(self._execute, batch, contents, garbage)
        self._in_flight = _InFlight(batch, garbage, future, on_end)
        return future

    def settle(self, key: Hashable = None) -> None:
        """Wait for the end of the background write, and record what it wrote.

        Args:
            key: settle only if this session is being written; None to settle in any case.
        """
        write = self._in_flight
        if write is None or (key is not None and all(key != each.key for each in write.batch.sessions)):
            return
        try:
            result: WrittenBatch | Exception = write.future.result()
        except Exception as error:
            result = error
        self._in_flight = None
        if isinstance(result, WrittenBatch):
            self._record(result)
            self._garbage_candidates.difference_update(write.garbage)
        write.on_end(result)

    def close(self) -> None:
        """Settle, and end the thread."""
        self.settle()
        if self._thread:
            self._thread.shutdown()
            self._thread = None

    def delete(self, key: Key, *, sync: bool) -> None:
        """Delete the manifest of a session. Its pages become garbage.

        Raises:
            DiskUnavailable: the disk cannot be written. The session is still there.
        """
        self.write(WriteBatch(removed=[key], sync=sync))

    def update_last_used(self, sessions: Sequence[tuple[Key, Manifest]]) -> None:
        """Write the time of last use of sessions, which their manifests have.

        Raises:
            DiskUnavailable: the disk cannot be written.
        """
        self.settle()
        with self._disk.transaction() as transaction:
            for key, manifest in sessions:
                transaction.touch(key, manifest.last_used, manifest.expires)

    def mark_garbage(self, pages: Iterable[Page]) -> None:
        """Have pages deleted from disk once nothing references them."""
        self._garbage_candidates.update(page.page_id for page in pages if page.page_id is not None)

    def garbage_in_use(self) -> set[Page]:
        """Return pages that no session references but an operation in progress still does. They stay on disk."""
        pages = (self._pool.page_by_id(page_id) for page_id in self._garbage_candidates)
        return {page for page in pages if page is not None and not page.ref_count}

    @property
    def has_garbage(self) -> bool:
        """Whether pages may be unreferenced. Any thread may read it."""
        return bool(self._garbage_candidates)

    def unreferenced_garbage(self, limit: int | None = BACKGROUND_GARBAGE_BATCH) -> list[int]:
        """Return ids of pages on disk that nothing in memory references. A manifest may still have them."""
        unreferenced, referenced = list[int](), list[int]()
        for page_id in self._garbage_candidates:
            if len(unreferenced) == limit:
                break
            page = self._pool.page_by_id(page_id)
            if page is None:
                unreferenced.append(page_id)
            elif page.ref_count:
                referenced.append(page_id)
            # An operation in progress may hold an old value of a session, and with it pages that no session has.
        # When the last session releases such a page, it becomes a candidate again.
        self._garbage_candidates.difference_update(referenced)
        return unreferenced

    def collect_garbage(self, *, everything: bool = True) -> None:
        """Delete pages from disk that neither a manifest nor anything in memory references.

        Args:
            everything: whether to delete all of them, or at most one batch. One batch is left to the background, if
                garbage is collected there.

        Raises:
            DiskUnavailable: the disk cannot be written. The remaining pages are still there.
        """
        if not everything and self.collects_in_background:
            return
        self.settle()
        unreferenced = self.unreferenced_garbage(None if everything else GARBAGE_BATCH)
        for start in range(0, len(unreferenced), GARBAGE_BATCH):
            page_ids = unreferenced[start : start + GARBAGE_BATCH]
            with self._disk.transaction() as transaction:
                transaction.remove_pages(page_ids)
            self._garbage_candidates.difference_update(page_ids)
