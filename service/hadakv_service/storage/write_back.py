"""WriteBack: writes sessions and pages to disk; checkpoint at shutdown."""

import logging
import time
from collections.abc import Collection, Generator, Hashable, Iterable, Sequence
from math import inf
from typing import NamedTuple

from hadakv_service.errors import InsufficientStorage, ServiceError
from hadakv_service.sessions.page import Page, PageState
from hadakv_service.sessions.session import Session
from hadakv_service.storage.buffer_pool import BufferPool, group_by_parent
from hadakv_service.storage.disk.interface import DiskStore, DiskStoreError, DiskUnavailable, Key, display_key
from hadakv_service.storage.disk_space import DiskSpace
from hadakv_service.storage.disk_writer import DiskWriter, WriteBatch, unwritten_pages
from hadakv_service.storage.session_table import SessionRecord, SessionTable

log = logging.getLogger(__name__)

# Bytes of pages to write in one transaction. Larger transactions would make other requests wait.
WRITE_CHUNK_NBYTES = 8 << 20
# Maximum number of pages in one transaction, however small they are.
WRITE_CHUNK_PAGES = 512


class Unwritten(NamedTuple):
    """Sessions that are not completely on disk.

    Attributes:
        sessions: number of sessions.
        nbytes: bytes of their pages that are in memory only.
    """

    sessions: int
    nbytes: int


class WriteBack:
    """Writes sessions and pages to disk. Makes space there first.

    Args:
        disk: store to write to.
        pool: pool that owns the pages.
        writer: writer of the disk store.
        table: sessions in memory.
        space: makes space on disk.
    """

    def __init__(
        self, disk: DiskStore, pool: BufferPool, writer: DiskWriter, table: SessionTable, space: DiskSpace
    ) -> None:
        self._disk = disk
        self._pool = pool
        self._writer = writer
        self._table = table
        self._space = space

    def commit(self, batch: WriteBatch, pinned: Collection[Hashable], used_before: float = inf) -> None:
        """Make space on disk, write a batch in one transaction, and mark its sessions clean.

        Args:
            batch: what to write.
            pinned: keys of sessions that must not be deleted for it.
            used_before: delete only sessions last used before this time, Unix seconds.

        Raises:
            DiskBudgetExceeded: there is no space. Nothing was written.
            InsufficientStorage: the disk cannot be written. Nothing was written.
            SessionCorrupt, StorageUnavailable: the parent page of a slice cannot be read. Nothing was written.
        """
        self._writer.settle()
        self._ensure_space(batch.unwritten_pages(), pinned, used_before)
        try:
            manifests = self._writer.write(batch)
        except DiskUnavailable as error:
            raise InsufficientStorage(f"The disk cannot be written: {error}. Nothing was stored.") from error
        for write, manifest in zip(batch.sessions, manifests, strict=True):
            if record := self._table.get(write.key):
                self._table.set_manifest(write.key, record, manifest, clean=True)
        if batch.sync:
            self._table.dirty.synced()
        for key in batch.removed:
            if record := self._table.get(key):
                self._table.set_manifest(key, record, None, clean=False)

    def settle(self) -> None:
        """Wait for the write in the background, if there is one, and record what it wrote."""
        self._writer.settle()

    def _ensure_space(self, pages: Iterable[Page], pinned: Collection[Hashable], used_before: float = inf) -> None:
        self._space.ensure(self.disk_nbytes(pages), pinned, used_before)

    def disk_nbytes(self, pages: Iterable[Page]) -> int:
        """Return the bytes that pages take on disk, without those that are there already."""
        return sum(self._disk.page_nbytes(page.nbytes) for page in pages if page.page_id is None)

    def delete_old_copy(self, key: Key) -> None:
        """Delete what the disk has of a session in memory, to make space for its present value.

        Raises:
            InsufficientStorage: the disk cannot be written.
        """
        # Sync, so that the old copy does not reappear after a crash if the session is deleted later.
        self.commit(WriteBatch(removed=[key], sync=True), ())
        try:
            self._writer.collect_garbage()
        except DiskUnavailable as error:
            raise InsufficientStorage(f"The disk cannot be written: {error}.") from error

    def unwritten(self) -> Unwritten:
        """Return what a checkpoint would write now."""
        records = [each for _, each in self._table.items() if not each.is_clean and self._space.can_spill(each.session)]
        pages = {page for record in records for page in unwritten_pages(record.session)}
        return Unwritten(len(records), sum(page.nbytes for page in pages))

    def checkpoint(self, until: float) -> int:
        """Write every session that may be on disk, most recently used first.

        If there is no space for all of them, no session is deleted for one that was used before it.

        Args:
            until: time to stop at, by `time.monotonic`.

        Returns:
            number of sessions that were not written.
        """
        self._writer.settle()
        try:
            self._table.write_last_used(self._table.items())
        except DiskUnavailable as error:
            log.warning("times of last use not written: %s", error)
        unwritten = 0
        for key in self._table.mru_keys():
            record = self._table.get(key)
            # A session that was deleted to make space must not be written again.
            if record and self._space.can_spill(record.session) and not record.is_clean:
                try:
                    is_written = all(time.monotonic() < until for _ in self._write_session(key, record))
                except (DiskStoreError, ServiceError) as error:
                    log.error("session %s not written: %s", display_key(key), str(error))
                    is_written = False
                unwritten += not is_written
        return unwritten

    def _write_session(self, key: Key, record: SessionRecord) -> Generator[None, None, None]:
        for pages in _write_chunks(unwritten_pages(record.session)):
            yield
            self.commit(WriteBatch(pages=pages), {key}, record.last_used)
        yield
        self.commit(WriteBatch([record.to_write(key)]), {key})

    def flush_early(self, key: Key, session: Session) -> Generator[None, None, None]:
        """Write the pages of a large acknowledged session before the group commit, in chunks.

        The group commit writes in one go, and other jobs would wait for it.

        Raises:
            InsufficientStorage: the disk is full or cannot be written.
        """
        if session.durability != "ack":
            return
        new = unwritten_pages(session)
        if sum(page.nbytes for page in new) <= WRITE_CHUNK_NBYTES:
            return
        # Check the space for all pages first, so that no session is deleted for an append that fails.
        self._ensure_space(new, {key})
        for pages in _write_chunks(new):
            self._write_uncommitted(key, pages)
            yield

    def materialize_slices(self, key: Key, session: Session, *, in_memory: bool) -> Generator[None, None, None]:
        """Give slices bytes of their own, in chunks.

        Args:
            key: key of the session.
            session: value that is about to be committed.
            in_memory: whether memory has space for copies of resident pages. Other slices are written to disk.

        Raises:
            InsufficientStorage: the disk is full or cannot be written.
            SessionCorrupt, StorageUnavailable: a page cannot be read.
        """
        slices = [page for page in session.all_pages() if page.state is PageState.SLICE]
        parents = {page.parent[0] for page in slices if page.parent}
        with self._pool.pinned(key, parents):
            self._ensure_space([page for page in slices if not (in_memory and _is_parent_resident(page))], {key})
            for pages in _write_chunks(slices):
                copied = [page for page in pages if in_memory and _is_parent_resident(page)]
                for page in copied:
                    self._pool.materialize(page)
                if len(copied) < len(pages):
                    self._write_uncommitted(key, [page for page in pages if page.parent])
                yield

    def _write_uncommitted(self, key: Key, pages: Sequence[Page]) -> None:
        self.commit(WriteBatch(pages=pages), {key})
        # If the operation fails, no session ever references these pages.
        self._writer.mark_garbage(pages)


def _is_parent_resident(page: Page) -> bool:
    return page.parent is not None and page.parent[0].is_resident


def _write_chunks(pages: list[Page]) -> Generator[list[Page], None, None]:
    """Yield pages in chunks for one transaction each. Slices of one parent stay together, so that it is read once."""
    chunk: list[Page] = []
    nbytes, last_parent = 0, None
    for page in group_by_parent(pages):
        parent = page.parent and page.parent[0]
        is_full = nbytes >= WRITE_CHUNK_NBYTES or len(chunk) >= WRITE_CHUNK_PAGES
        if is_full and (parent is None or parent is not last_parent):
            yield chunk
            chunk, nbytes = [], 0
        chunk.append(page)
        nbytes += page.nbytes
        last_parent = parent
    if chunk:
        yield chunk
