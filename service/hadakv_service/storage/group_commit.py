"""GroupCommit: dirty sessions, written together after each batch of jobs; rollback if that fails."""

import logging
from collections.abc import Iterable

from hadakv_service.errors import InsufficientStorage
from hadakv_service.sessions.page_diff import page_diff
from hadakv_service.storage.disk.interface import DiskStoreError, DiskUnavailable, Key
from hadakv_service.storage.disk.manifest import is_prefix
from hadakv_service.storage.disk_writer import DiskWriter, WriteBatch
from hadakv_service.storage.session_table import SessionRecord, SessionTable
from hadakv_service.storage.write_back import WriteBack

log = logging.getLogger(__name__)


class GroupCommit:
    """Writes the sessions that changed since the last group commit. Restores those that cannot be written.

    Args:
        writer: writer of the disk store.
        table: sessions in memory.
        write_back: writes a batch to disk.
    """

    def __init__(self, writer: DiskWriter, table: SessionTable, write_back: WriteBack) -> None:
        self._writer = writer
        self._table = table
        self._write_back = write_back
        # Records before their first change since the last group commit, which rolls back to them if it fails.
        self._records_before: dict[Key, SessionRecord | None] = {}

    def mark_dirty(self, key: Key, old: SessionRecord | None, new: SessionRecord) -> None:
        """Note a changed session for the next group commit, if the disk must know before the response is sent.

        The disk must know of acknowledged sessions, and of sessions whose manifest on disk is no
        longer a prefix of the session, after a truncate.
        """
        if new.is_acknowledged or (new.manifest is not None and not is_prefix(new.manifest, new.session)):
            self._records_before.setdefault(key, old)

    def __contains__(self, key: object) -> bool:
        """Whether a session has changes for the next group commit, which may roll them back."""
        return key in self._records_before

    def run(self) -> dict[Key, Exception]:
        """Write all dirty sessions in one transaction, then delete some garbage.

        Returns:
            the error of each session that could not be written. These sessions are as they were before.
        """
        failed: dict[Key, Exception] = {}
        if self._records_before:
            before, self._records_before = self._records_before, {}
            try:
                self._write_dirty(before)
            except Exception as error:
                failed = dict.fromkeys(before, error)
                for key, old in before.items():
                    self._roll_back(key, old)
        try:
            self._writer.collect_garbage(everything=False)
        except DiskUnavailable as error:
            log.warning("garbage pages not deleted: %s", error)
        return failed

    def _write_dirty(self, keys: Iterable[Key]) -> None:
        # The writes below replace the manifests that the disk has.
        self._writer.settle()
        dirty = {key: record for key in keys if (record := self._table.get(key))}
        # The manifests of other dirty sessions have tokens that were truncated since. Delete these manifests.
        stale = [key for key, record in dirty.items() if not record.is_acknowledged]
        writes = [record.to_write(key) for key, record in dirty.items() if record.is_acknowledged]
        try:
            self._write_back.commit(WriteBatch(writes, removed=stale, sync=bool(writes or stale)), dirty)
        except DiskStoreError as error:
            raise InsufficientStorage(f"The disk cannot be written: {error}. Nothing was stored.") from error

    def _roll_back(self, key: Key, old: SessionRecord | None) -> None:
        new = self._table.get(key)
        if new is None:
            return
        gained, lost = page_diff(new.session, old.session) if old else (set(), set(new.session.all_pages()))
        if old:
            # A reader may have seen the tokens that are dropped here.
            old.session = old.session.with_new_revision()
        self._table.replace(key, old, gained, lost)
