"""SqliteStore: one SQLite file with a blob for each page and a manifest for each session, both with checksums."""

import logging
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

from hadakv_service.storage.disk import stored_clock
from hadakv_service.storage.disk.interface import (
    CorruptData,
    DataDirectoryError,
    DiskStoreError,
    DiskTransaction,
    DiskUnavailable,
    Key,
    Manifest,
    PageContent,
    PageInfo,
    display_key,
)
from hadakv_service.storage.disk.row_format import check_pages, is_valid, manifest_from_row, unpack_page
from hadakv_service.storage.disk.sqlite_file import (
    BLOCK_NBYTES,
    FILE,
    TOUCH,
    discard_failed_commit,
    free_nbytes,
    open_database,
    page_cost,
)
from hadakv_service.storage.disk.sqlite_transaction import COLUMNS, SESSION_NBYTES, SqliteTransaction, counted_nbytes

log = logging.getLogger(__name__)

# Maximum number of expired sessions, or of blocks to vacuum, at a time, so that no request waits long.
_BATCH = 256


class SqliteStore:
    """Sessions in a SQLite file. See `DiskStore` for the methods. Any thread may call them.

    Args:
        directory: data directory. It is created if it is missing.
        budget: bytes that pages and manifests may take. The write-ahead log of up to 64 MiB is not counted.

    Raises:
        DataDirectoryError: the file belongs to another version, is corrupt, or is in use.
        OSError: the directory cannot be used.
    """

    name = "disk"

    def __init__(self, directory: Path, budget: int) -> None:
        self.budget = budget
        self.failures = self.read_nbytes = self.written_nbytes = 0
        # Taken for each transaction and each read: checkpoints are written on a thread of their own.
        self._lock = threading.RLock()
        self._directory = directory
        self._sql = open_database(directory)
        self._file = os.stat(directory / FILE)
        self._is_failing = False
        # Whether the write-ahead log is known to have no failed transaction.
        self._wal_is_trusted = True
        try:
            self._delete_orphaned_pages()
            pages = self._cost("SELECT nbytes, COUNT(*) FROM pages GROUP BY nbytes")
            self.sessions = int(self._one("SELECT COUNT(*), SUM(nbytes) FROM sessions")[0])
        except sqlite3.Error as error:
            self._sql.close()
            raise DataDirectoryError(
                f"{directory / FILE}: {error}. Move it away, or choose another --data-dir."
            ) from error
        self.used: int = pages + self.sessions * SESSION_NBYTES

    def _delete_orphaned_pages(self) -> None:
        """Delete pages of sessions that were not written completely before the last process ended."""
        try:
            self._sql.execute("DELETE FROM pages WHERE id NOT IN (SELECT page FROM holds)")
        except sqlite3.OperationalError as error:
            log.error("garbage pages not deleted: %s", error)

    @property
    def available(self) -> int:
        """Bytes that may be added now, limited by the budget and by the file system."""
        return min(self.budget - self.used, self._disk_free_nbytes())

    @property
    def is_short_of_disk(self) -> bool:
        """Whether the file system has less free space than the budget allows to add."""
        return self._disk_free_nbytes() < self.budget - self.used

    def _disk_free_nbytes(self) -> int:
        with self._reading():
            (free_blocks,) = self._one("PRAGMA freelist_count")
        # Data is written to the log before the file, so it takes twice its size for a while.
        try:
            free = free_nbytes(self._directory)
        except OSError as error:
            # The directory was removed or replaced. Open files can still be written, but would be lost.
            raise DiskUnavailable(str(error)) from error
        return int(free_blocks) * BLOCK_NBYTES + free // 2

    def page_nbytes(self, nbytes: int) -> int:
        """Return the bytes counted for a page of `nbytes` bytes."""
        return page_cost(nbytes)

    def _cost(self, query: str, values: Sequence[Any] = ()) -> int:
        """Return the bytes counted for pages. The query returns each page size and the number of such pages."""
        return sum(counted_nbytes(nbytes) * count for nbytes, count in self._sql.execute(query, values))

    def _one(self, query: str, values: Sequence[Any] = ()) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._sql.execute(query, values).fetchone()
        return row

    @contextmanager
    def transaction(self, *, sync: bool = False, counts: bool = True) -> Iterator[SqliteTransaction]:
        """Open a transaction. It commits at the end of the block. Other threads wait for it."""
        with self._lock, self._open_transaction(sync=sync) as transaction:
            yield transaction
        if counts:
            self.count(transaction)

    def count(self, transaction: DiskTransaction) -> None:
        """Add the changes of a committed transaction to `used`, `sessions` and `written_nbytes`."""
        self.used += transaction.used
        self.sessions += transaction.sessions
        self.written_nbytes += transaction.written_nbytes

    @contextmanager
    def _open_transaction(self, *, sync: bool) -> Iterator[SqliteTransaction]:
        transaction = SqliteTransaction(self._sql)
        if sync:
            self._check_same_file()
        if sync and not self._wal_is_trusted:
            self._wal_is_trusted = discard_failed_commit(self._sql)
            if not self._wal_is_trusted:
                raise DiskUnavailable("the disk failed to sync, and still fails")
        committing = False
        try:
            self._sql.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
            self._sql.execute("BEGIN IMMEDIATE")
            yield transaction
            committing = True
            self._sql.execute("COMMIT")
            self._is_failing = False
        except sqlite3.Error as error:
            self.failures += 1
            self._roll_back()
            if committing and getattr(error, "sqlite_errorname", "").startswith("SQLITE_IOERR"):
                self._wal_is_trusted = discard_failed_commit(self._sql)
            # Once for all failures in a row. Each rejected request has the reason in its response.
            if not self._is_failing:
                log.error("disk store cannot be written: %s; free space or repair the disk", error)
            self._is_failing = True
            raise DiskUnavailable(str(error)) from error
        except BaseException:
            self._roll_back()
            raise

    def sync(self) -> None:
        """Make all committed changes survive a power loss."""
        # An empty transaction would not sync. Write something.
        with self.transaction(sync=True):
            self._sql.execute(TOUCH)

    def _roll_back(self) -> None:
        if self._sql.in_transaction:
            try:
                self._sql.execute("ROLLBACK")
            except sqlite3.Error as error:
                log.warning("rollback failed: %s", error)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except sqlite3.OperationalError as error:
            self.failures += 1
            raise DiskUnavailable(str(error)) from error
        except sqlite3.DatabaseError as error:
            self.failures += 1
            raise CorruptData(str(error)) from error

    def read_page(self, page_id: int) -> PageContent:
        """Read a page."""
        with self._reading():
            found = self._sql.execute("SELECT header, checksum, content FROM pages WHERE id = ?", (page_id,)).fetchone()
        if found is None:
            raise CorruptData(f"page {page_id} is missing")
        header, checksum, blob = found
        if not is_valid(checksum, header, blob):
            self.failures += 1
            raise CorruptData(f"page {page_id}: checksum mismatch")
        self.read_nbytes += len(header) + len(blob)
        return unpack_page(header, blob)

    def sessions_with_page(self, page_id: int) -> list[Key]:
        """Return the keys of sessions whose manifests have a page."""
        query = "SELECT DISTINCT owner, name FROM holds JOIN sessions ON id = session WHERE page = ?"
        with self._reading():
            return self._sql.execute(query, (page_id,)).fetchall()

    def find(self, key: Key) -> tuple[Manifest, Mapping[int, PageInfo]] | None:
        """Read the manifest of a session and the properties of its pages."""
        with self._reading():
            query = f"SELECT {COLUMNS}, id FROM sessions WHERE owner = ? AND name = ?"
            found = self._sql.execute(query, key).fetchone()
            if found is None:
                return None
            query = (
                "SELECT run, page, layers, tokens, pages.nbytes FROM holds LEFT JOIN pages ON pages.id = page "
                "WHERE session = ? ORDER BY run, place"
            )
            page_rows = self._sql.execute(query, found[-1:]).fetchall()
        pages: dict[int, list[int]] = {}
        for run, page, *_ in page_rows:
            pages.setdefault(run, []).append(page)
        infos = {page: PageInfo(*info) for _, page, *info in page_rows if info[0] is not None}
        manifest = manifest_from_row(found, pages)
        check_pages(manifest, infos)
        return manifest, infos

    def list_manifests(self, owner: str, prefix: str, after: str, limit: int) -> list[tuple[str, Manifest]]:
        """List up to `limit` manifests of an owner in order of id, without pages."""
        query = f"SELECT {COLUMNS} FROM sessions WHERE owner = ? AND name > ? AND name >= ? AND name < ? ORDER BY name"
        with self._reading():
            found: list[tuple[str, Manifest]] = []
            for row in self._sql.execute(query, (owner, after, prefix, prefix + "\x7f")):
                try:
                    found.append((row[1], manifest_from_row(row, {})))
                except CorruptData as error:
                    log.error("session %s: %s; delete it", display_key((owner, row[1])), str(error))
                if len(found) == limit:
                    break
            return found

    def nbytes(self, key: Key) -> int | None:
        """Return the packed bytes of a session; None if there is none."""
        with self._reading():
            found = self._sql.execute("SELECT nbytes FROM sessions WHERE owner = ? AND name = ?", key).fetchone()
        return None if found is None else int(found[0])

    def check(self) -> None:
        """Check that the file can be written, and that the next process will find it."""
        self._check_same_file()
        with self.transaction():
            self._sql.execute(TOUCH)

    def _check_same_file(self) -> None:
        """Check that the path still names the open file. Otherwise the next process would not find the data."""
        try:
            is_same = os.path.samestat(self._file, os.stat(self._directory / FILE))
        except OSError as error:
            raise DiskUnavailable(str(error)) from error
        if not is_same:
            raise DiskUnavailable(f"{self._directory / FILE} was replaced by another file")

    def lru_session(self, pinned: Collection[Key], used_before: float = inf) -> Key | None:
        """Return the least recently used session that is neither protected nor pinned."""
        query = "SELECT owner, name FROM sessions WHERE NOT permanent AND last_used < ? ORDER BY last_used LIMIT ?"
        with self._reading():
            found = self._sql.execute(query, (used_before, len(pinned) + 1)).fetchall()
        return next((key for key in found if key not in pinned), None)

    def retained_nbytes(self, pinned: Collection[Key], used_since: float = inf) -> int:
        """Return the bytes counted for pages of sessions that are protected, pinned, or were used since a time."""
        condition = " OR ".join(["permanent", "last_used >= ?", *["(owner = ? AND name = ?)"] * len(pinned)])
        query = (
            f"SELECT nbytes, COUNT(*) FROM pages WHERE id IN (SELECT page FROM holds "
            f"WHERE session IN (SELECT id FROM sessions WHERE {condition})) GROUP BY nbytes"
        )
        with self._reading():
            return self._cost(query, [used_since, *(part for key in pinned for part in key)])

    def expired(self, now: float) -> list[Key]:
        """Return the keys of some expired sessions."""
        query = "SELECT owner, name FROM sessions WHERE expires <= ? LIMIT ?"
        with self._reading():
            return self._sql.execute(query, (now, _BATCH)).fetchall()

    def remove(self, key: Key) -> bool:
        """Delete the manifest of a session and sync. Its pages are deleted at the next start."""
        if self.nbytes(key) is None:
            return False
        with self.transaction(sync=True) as transaction:
            transaction.remove(key)
        return True

    def forget_unserved(self, key: Key) -> bool:  # noqa: ARG002 - every session is served
        """Return False."""
        return False

    def resume_clock(self, now: float) -> None:
        """Set times of last use back if the clock was set back."""
        try:
            with self._reading():
                is_back = stored_clock.seconds_back(self._sql, now) or stored_clock.is_late(self._sql, now)
            if is_back:
                with self.transaction():
                    stored_clock.set_back(self._sql, now)
        except DiskStoreError as error:
            log.warning("times of last use not adjusted: %s", error)

    def save_clock(self, now: float) -> None:
        """Store the present time, if a session has a TTL."""
        with self._reading():
            (expiring,) = self._one("SELECT EXISTS (SELECT 1 FROM sessions WHERE expires IS NOT NULL)")
        if expiring:
            with self.transaction():
                stored_clock.save(self._sql, now)

    def owners(self) -> dict[str, tuple[int, int]]:
        """Return the packed bytes and the number of sessions of each owner."""
        with self._reading():
            found = self._sql.execute("SELECT owner, SUM(nbytes), COUNT(*) FROM sessions GROUP BY owner")
            return {owner: (nbytes, count) for owner, nbytes, count in found}

    def vacuum(self) -> None:
        """Shrink the file by a part if more than a quarter of it is free."""
        with self._reading():
            (free,), (blocks,) = self._one("PRAGMA freelist_count"), self._one("PRAGMA page_count")
            if free > 4096 and free * 4 > blocks:
                self._sql.execute(f"PRAGMA incremental_vacuum({_BATCH})").fetchall()

    def close(self) -> None:
        """Write the log into the file, and release the lock."""
        with self._lock:
            self._sql.close()
