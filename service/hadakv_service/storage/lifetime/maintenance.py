"""StoreMaintenance: expiry, periodic maintenance, health, and the end of a store."""

from contextlib import suppress
from itertools import islice

from hadakv_service.errors import StorageUnavailable
from hadakv_service.storage.disk.interface import DiskStore, DiskStoreError, DiskUnavailable
from hadakv_service.storage.disk_writer import DiskWriter
from hadakv_service.storage.session_table import SessionTable
from hadakv_service.storage.write_back import Unwritten, WriteBack

# Sessions to expire before one request. Lookups ignore expired sessions, so they can be deleted a few at a time.
EXPIRE_BATCH = 32


class StoreMaintenance:
    """The part of `SessionStore` that is not called for one session.

    Attributes:
        disk: disk store.
    """

    disk: DiskStore
    _table: SessionTable
    _writer: DiskWriter
    _write_back: WriteBack

    def expire(self) -> None:
        """Delete expired sessions in memory, a few at a time."""
        with suppress(StorageUnavailable):
            for key in islice(self._table.expired(), EXPIRE_BATCH):
                self._table.delete(key, "ttl")

    def run_maintenance(self) -> None:
        """Delete expired sessions, write times of last use, delete garbage pages, and shrink the file."""
        self._table.evicted.report()
        self.expire()
        with suppress(StorageUnavailable, DiskStoreError):
            self._table.write_last_used(self._table.with_ttl())
            self.disk.save_clock(self._table.clock())
            for key in self.disk.expired(self._table.clock()):
                if key not in self._table:
                    self._table.delete(key, "ttl")
            if not self._writer.collects_in_background:
                self._writer.collect_garbage()
            self.disk.vacuum()

    def health_check(self) -> int:
        """Check that the disk can be written. Return the bytes that can be added without deleting a session.

        Raises:
            StorageUnavailable: the disk cannot be written.
        """
        try:
            self.disk.check()
            return max(0, self.disk.available)
        except DiskUnavailable as error:
            raise StorageUnavailable(f"The disk cannot be written: {error}.") from error

    def unwritten(self) -> Unwritten:
        """Return what a checkpoint would write now."""
        return self._write_back.unwritten()

    def close(self, until: float) -> int:
        """Write a checkpoint and close the disk store.

        Args:
            until: time to stop writing at, by `time.monotonic`.

        Returns:
            number of sessions that were not written.
        """
        self._table.evicted.report(now=True)
        unwritten = self._write_back.checkpoint(until)
        self._writer.close()
        with suppress(DiskStoreError):
            self.disk.save_clock(self._table.clock())
        self.disk.close()
        return unwritten
