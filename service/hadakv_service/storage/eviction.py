"""Evictor: spill or delete LRU sessions to make room in memory."""

from collections.abc import Collection, Generator, Hashable
from contextlib import suppress

from hadakv_service.errors import InsufficientStorage
from hadakv_service.sessions.page import Page
from hadakv_service.storage.buffer_pool import BufferPool
from hadakv_service.storage.disk.interface import DiskStore, DiskStoreError, Key
from hadakv_service.storage.disk_space import DiskBudgetExceeded, DiskSpace
from hadakv_service.storage.disk_writer import WriteBatch
from hadakv_service.storage.memory_budget import MemoryBudget, evicted_nbytes
from hadakv_service.storage.session_table import SessionRecord, SessionTable
from hadakv_service.storage.write_back import WRITE_CHUNK_NBYTES, WriteBack

# Sessions to scan for evictable pages before a read bypasses the pool.
EVICTION_SCAN_LIMIT = 64


class Evictor:
    """Makes space in memory. Chooses the least recently used sessions: spills them to disk, or deletes them.

    Args:
        memory: counts the bytes of sessions.
        disk: store to spill to.
        pool: pool that owns the pages.
        table: sessions in memory. It deletes the chosen sessions.
        space: says what may be on disk.
        write_back: writes pages before they are evicted.
    """

    def __init__(
        self,
        memory: MemoryBudget,
        disk: DiskStore,
        pool: BufferPool,
        table: SessionTable,
        space: DiskSpace,
        write_back: WriteBack,
    ) -> None:
        self._memory = memory
        self._disk = disk
        self._pool = pool
        self._table = table
        self._space = space
        self._write_back = write_back

    def shortfall(self, nbytes: int, pinned: Collection[Hashable]) -> int:
        """Return how many of `nbytes` would not fit in memory if all sessions that are not pinned were evicted.

        If there is a disk, pages of pinned sessions may be evicted too.
        """
        if nbytes <= self._memory.available:
            return 0
        kept = [record for key in pinned if (record := self._table.get(key))]
        excess = nbytes + self._memory.reserved - self._memory.limit
        with_pinned_resident = excess + sum(record.cost for record in kept)
        if with_pinned_resident <= 0 or not self._disk.budget or not self._space.can_fit(with_pinned_resident, pinned):
            return with_pinned_resident
        return excess + sum(
            evicted_nbytes(record.session) if self._space.can_spill(record.session) else record.cost for record in kept
        )

    def ensure(self, nbytes: int, pinned: Collection[Hashable]) -> Generator[None, None, None]:
        """Make space in memory as far as possible, in chunks. Other jobs may run between them.

        Args:
            nbytes: bytes to be stored.
            pinned: keys of sessions that must not be deleted. If nothing else helps, their pages are evicted.

        Raises:
            InsufficientStorage: pages must be spilled, but the disk is full or cannot be written. Nothing was lost.
        """
        while (excess := self._memory.stored + nbytes - self._memory.limit) > 0:
            if not (self._evict_lru_session(excess, pinned) or self._spill_pinned_sessions(excess, pinned)):
                return
            yield

    def ensure_now(self, nbytes: int, pinned: Collection[Hashable]) -> None:
        """Make space in memory, like `ensure`, without a pause.

        Raises:
            InsufficientStorage: pages must be spilled, but the disk is full or cannot be written. Nothing was lost.
        """
        for _ in self.ensure(nbytes, pinned):
            pass

    def try_free(self, nbytes: int) -> None:
        """Free memory for a read by evicting pages of sessions that were not used lately. Never delete a session.

        Manifests are not written here, because the caller may be writing one.
        """
        if nbytes <= self._memory.available:
            return
        with suppress(DiskStoreError, InsufficientStorage):
            self._write_back.settle()
            for key, record in self._table.lru_items(EVICTION_SCAN_LIMIT):
                while (excess := nbytes - self._memory.available) > 0:
                    pages = self._pages_to_spill(record, excess) if self._space.can_spill(record.session) else []
                    if not pages or self._write_back.disk_nbytes(pages) > self._disk.available:
                        break
                    self._spill(WriteBatch(pages=pages), ())
                if excess <= 0:
                    return
                if record.is_clean and not any(page.is_resident for page in record.session.all_pages()):
                    self._table.write_last_used([(key, record)])
                    self._table.drop_from_memory(key)

    def _evict_lru_session(self, excess: int, pinned: Collection[Hashable]) -> bool:
        """Free some memory of the least recently used session that is not pinned. Return whether there was one."""
        key = self._table.lru_key(pinned)
        if key is None:
            return False
        record = self._table.get(key)
        assert record is not None
        if not self._space.can_spill(record.session):
            self._table.delete(key, "memory")
            return True
        # A background write may have written these pages, and the manifest that this one replaces.
        self._write_back.settle()
        pages = self._pages_to_spill(record, excess)
        is_whole = len(pages) == sum(page.is_resident for page in record.session.all_pages())
        try:
            self._spill(WriteBatch([record.to_write(key)] if is_whole else [], pages), {key, *pinned})
        except DiskBudgetExceeded:
            if record.is_acknowledged:
                raise
            self._free_disk(key, record)
        else:
            if is_whole:
                self._table.drop_from_memory(key)
        return True

    def _free_disk(self, key: Key, record: SessionRecord) -> None:
        """Delete the old copy of a session on disk; if there is none, delete the session."""
        if not record.manifest:
            # The disk is full of sessions that were used more recently. Delete this one.
            self._table.delete(key, "memory")
            return
        # The old copy may use the space that the new one needs.
        self._write_back.delete_old_copy(key)

    def _spill_pinned_sessions(self, excess: int, pinned: Collection[Hashable]) -> bool:
        """Evict some pages of pinned sessions, whose manifests are not written yet. Return whether there were any."""
        for _, record in self._table.lru_order(pinned):
            pages = self._pages_to_spill(record, excess) if self._space.can_spill(record.session) else []
            if pages:
                self._spill(WriteBatch(pages=pages), pinned)
                return True
        return False

    def _pages_to_spill(self, record: SessionRecord, excess: int) -> list[Page]:
        """Return resident pages of a session, as many as are worth one transaction."""
        pages: list[Page] = []
        remaining = min(max(excess, WRITE_CHUNK_NBYTES // 2), WRITE_CHUNK_NBYTES)
        for page in record.session.all_pages():
            if remaining <= 0:
                break
            if page.is_resident:
                pages.append(page)
                remaining -= page.nbytes
        return pages

    def _spill(self, batch: WriteBatch, pinned: Collection[Hashable]) -> None:
        """Write a batch, then evict its pages.

        Raises:
            DiskBudgetExceeded, InsufficientStorage: the disk is full or cannot be written. Nothing was evicted.
        """
        self._write_back.commit(batch, pinned)
        for page in batch.pages:
            self._pool.evict(page)
