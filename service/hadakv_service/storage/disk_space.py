"""DiskSpace: delete LRU sessions to make room on disk."""

import logging
import time
from collections.abc import Collection, Hashable
from math import inf
from typing import cast

from hadakv_service.errors import InsufficientStorage
from hadakv_service.sessions.session import Session
from hadakv_service.storage.buffer_pool import BufferPool
from hadakv_service.storage.disk.interface import DiskStore, DiskStoreError, Key
from hadakv_service.storage.disk_writer import DiskWriter
from hadakv_service.storage.session_table import SessionTable

log = logging.getLogger(__name__)

# Minimum time between two warnings that the disk is full.
WARN_INTERVAL_SECONDS = 60.0


class DiskBudgetExceeded(InsufficientStorage):
    """The disk has no space, and no session that may be deleted for it."""


class DiskSpace:
    """Space on disk. Chooses the sessions that are deleted for it.

    Args:
        disk: store whose budget is shared.
        pool: pool that owns the pages.
        writer: writer of the disk store.
        table: sessions in memory. It deletes the chosen sessions.
    """

    def __init__(self, disk: DiskStore, pool: BufferPool, writer: DiskWriter, table: SessionTable) -> None:
        self._disk = disk
        self._pool = pool
        self._writer = writer
        self._table = table
        self._next_warning = 0.0

    def can_spill(self, session: Session) -> bool:
        """Whether the pages of a session may be on disk only."""
        return self._disk.budget > 0 and session.durability != "memory"

    def can_fit(self, nbytes: int, pinned: Collection[Hashable]) -> bool:
        """Whether so many bytes would fit if every session that is not pinned or acknowledged were deleted."""
        disk = self._disk
        try:
            return (
                nbytes <= disk.available or disk.retained_nbytes(_keys(pinned)) + nbytes <= disk.used + disk.available
            )
        except DiskStoreError:
            return False

    def ensure(self, nbytes: int, pinned: Collection[Hashable], used_before: float = inf) -> None:
        """Make space on disk. Delete least recently used sessions for it, but no acknowledged ones.

        Args:
            nbytes: bytes to be written.
            pinned: keys of sessions that must not be deleted.
            used_before: delete only sessions last used before this time, Unix seconds.

        Raises:
            DiskBudgetExceeded: there would be too little space even then. Nothing was deleted.
            InsufficientStorage: the disk cannot be used.
        """
        disk = self._disk
        if not nbytes:
            return
        self._writer.settle()
        try:
            if nbytes <= disk.available:
                return
            self._writer.collect_garbage()
            kept, limit = _keys(pinned), disk.used + disk.available
            is_short = self._warn_if_disk_full()
            if disk.retained_nbytes(kept, used_before) + self._unreferenced_nbytes(pinned) + nbytes > limit:
                reason = "the free space of the file system" if is_short else "the disk budget"
                raise DiskBudgetExceeded(
                    f"The disk store is full: {nbytes} more bytes do not fit, {limit} are allowed in total by {reason}."
                )
            if nbytes > disk.available:
                while nbytes > disk.available:
                    self._table.delete(self._lru_session(kept, used_before), "disk")
                    self._writer.collect_garbage()
                disk.sync()
        except DiskStoreError as error:
            raise InsufficientStorage(f"The disk cannot be used: {error}.") from error

    def _warn_if_disk_full(self) -> bool:
        """Return whether the file system is full. If so, warn the operator."""
        is_short = self._disk.is_short_of_disk
        if is_short and time.monotonic() >= self._next_warning:
            self._next_warning = time.monotonic() + WARN_INTERVAL_SECONDS
            log.warning(
                "data directory is low on space, below the disk budget: rejecting requests or deleting sessions; "
                "free disk space"
            )
        return is_short

    def _unreferenced_nbytes(self, pinned: Collection[Hashable]) -> int:
        """Return the bytes of pages that must stay on disk, but are in no manifest that is certain to stay."""
        in_use = self._pool.pinned_pages()
        records = [record for key in pinned if (record := self._table.get(key))]
        records += [record for key in in_use if (record := self._table.get(key)) and record.is_acknowledged]
        pages = {page for record in records for page in record.session.all_pages()} | self._writer.garbage_in_use()
        pages.update(*in_use.values())
        referenced = {
            page_id for record in records if record.manifest for run in record.manifest.runs for page_id in run.pages
        }
        return sum(
            self._disk.page_nbytes(page.nbytes)
            for page in pages
            if page.page_id is not None and page.page_id not in referenced
        )

    def _lru_session(self, pinned: Collection[Key], used_before: float) -> Key:
        """Return the least recently used session that has pages on disk and may be deleted.

        Raises:
            DiskBudgetExceeded: there is none.
        """
        while (key := self._disk.lru_session(pinned, used_before)) is not None:
            record = self._table.get(key)
            if record is None or record.manifest is None or record.manifest.last_used == record.last_used:
                return key
            # The session was used since its manifest was written. Update the manifest, then ask again.
            self._table.write_last_used([(key, record)])
        for key, record in self._table.items():
            is_kept = key in pinned or record.is_acknowledged or record.last_used >= used_before
            if not is_kept and any(page.page_id is not None for page in record.session.all_pages()):
                return key
        raise DiskBudgetExceeded("The disk budget is used up by sessions that must not be deleted.")


def _keys(pinned: Collection[Hashable]) -> list[Key]:
    return [cast(Key, key) for key in pinned]
