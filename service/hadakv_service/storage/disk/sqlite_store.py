"""The embedded tier: one SQLite file, pages as blobs with a checksum each, a manifest for each session."""

import logging
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

from hadakv_service.storage.disk.interface import (
    CorruptData,
    DataDirectoryError,
    DiskUnavailable,
    Key,
    Manifest,
    PageContent,
    PageInfo,
    display_key,
)
from hadakv_service.storage.disk.row_format import check_pages, is_sound, manifest_of, unpacked
from hadakv_service.storage.disk.sqlite_file import (
    BLOCK_NBYTES,
    FILE,
    TOUCH,
    discard_failed_commit,
    free_nbytes,
    open_database,
    page_cost,
)
from hadakv_service.storage.disk.sqlite_transaction import COLUMNS, SESSION_NBYTES, SqliteTransaction, counted

log = logging.getLogger(__name__)

# Enough at a time that none of it holds up others for long.
_SOME = 256


class SqliteStore:
    """Sessions in a file.

    Args:
        directory: where that lies; made if it is missing.
        budget: bytes that pages and manifests may take. The file has its log of 64 MiB besides.

    Raises:
        TierRefused: what is there is not for this version, damaged all over, or in use.
        OSError: the directory cannot be used.
    """

    name = "disk"

    def __init__(self, directory: Path, budget: int) -> None:
        self.budget = budget
        self.failures = 0
        self._directory = directory
        self._sql = open_database(directory)
        self._file = os.stat(directory / FILE)
        # Whether the log is known to have nothing that failed.
        self._wal_is_trusted = True
        try:
            self._delete_orphaned_pages()
            pages = self._cost("SELECT nbytes, COUNT(*) FROM pages GROUP BY nbytes")
            self.sessions = int(self._one("SELECT COUNT(*), SUM(nbytes) FROM sessions")[0])
        except sqlite3.Error as error:
            self._sql.close()
            raise DataDirectoryError(
                f"{directory / FILE}: {error}; move it away, or choose another --data-dir"
            ) from error
        self.used: int = pages + self.sessions * SESSION_NBYTES

    def _delete_orphaned_pages(self) -> None:
        """Remove pages of sessions that were never written as a whole, which nobody has once the process has ended."""
        try:
            self._sql.execute("DELETE FROM pages WHERE id NOT IN (SELECT page FROM holds)")
        except sqlite3.OperationalError as error:
            log.error("pages that nobody needs stay, as they cannot be removed: %s", error)

    @property
    def available(self) -> int:
        """Bytes that may be added now: of what the budget allows as much as the disk has."""
        return min(self.budget - self.used, self._disk_room())

    @property
    def is_short_of_disk(self) -> bool:
        """Whether the disk has less than the budget allows."""
        return self._disk_room() < self.budget - self.used

    def _disk_room(self) -> int:
        with self._reading():
            (idle,) = self._one("PRAGMA freelist_count")
        # What is added to the file is in its log before.
        try:
            free = free_nbytes(self._directory)
        except OSError as error:
            # Whoever took the directory away has the files, too, though they can still be written.
            raise DiskUnavailable(str(error)) from error
        return int(idle) * BLOCK_NBYTES + free // 2

    def page_nbytes(self, nbytes: int) -> int:
        """What a page of so many bytes is counted as."""
        return page_cost(nbytes)

    def _cost(self, query: str, values: Sequence[Any] = ()) -> int:
        """What pages are counted as; the query says how many there are of each size."""
        return sum(counted(nbytes) * count for nbytes, count in self._sql.execute(query, values))

    def _one(self, query: str, values: Sequence[Any] = ()) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._sql.execute(query, values).fetchone()
        return row

    @contextmanager
    def transaction(self, *, sync: bool = False) -> Iterator[SqliteTransaction]:
        """Changes, made at the end of the block."""
        change = SqliteTransaction(self._sql)
        if sync:
            self._check_place()
        if sync and not self._wal_is_trusted:
            self._wal_is_trusted = discard_failed_commit(self._sql)
            if not self._wal_is_trusted:
                raise DiskUnavailable("the disk has failed to sync, and still does")
        committing = False
        try:
            self._sql.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
            self._sql.execute("BEGIN IMMEDIATE")
            yield change
            committing = True
            self._sql.execute("COMMIT")
        except sqlite3.Error as error:
            self.failures += 1
            self._roll_back()
            if committing and getattr(error, "sqlite_errorname", "").startswith("SQLITE_IOERR"):
                self._wal_is_trusted = discard_failed_commit(self._sql)
            log.error("the disk tier could not be written: %s; make room or mend the disk, the service goes on", error)
            raise DiskUnavailable(str(error)) from error
        except BaseException:
            self._roll_back()
            raise
        self.used += change.used
        self.sessions += change.sessions

    def sync(self) -> None:
        """Let all that was changed outlive a loss of power."""
        # What has nothing to write would not sync either.
        with self.transaction(sync=True):
            self._sql.execute(TOUCH)

    def _roll_back(self) -> None:
        if self._sql.in_transaction:
            try:
                self._sql.execute("ROLLBACK")
            except sqlite3.Error as error:
                log.warning("rolling back: %s", error)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            self.failures += 1
            raise DiskUnavailable(str(error)) from error
        except sqlite3.DatabaseError as error:
            self.failures += 1
            raise CorruptData(str(error)) from error

    def read_page(self, row: int) -> PageContent:
        """Read a page."""
        with self._reading():
            found = self._sql.execute("SELECT header, checksum, content FROM pages WHERE id = ?", (row,)).fetchone()
        if found is None:
            raise CorruptData(f"page {row} is missing")
        header, checksum, blob = found
        if not is_sound(checksum, header, blob):
            self.failures += 1
            raise CorruptData(f"page {row} has another checksum than when it was written")
        return unpacked(header, blob)

    def sessions_with_page(self, row: int) -> list[Key]:
        """Whose manifests hold a page."""
        query = "SELECT DISTINCT owner, name FROM holds JOIN sessions ON id = session WHERE page = ?"
        with self._reading():
            return self._sql.execute(query, (row,)).fetchall()

    def find(self, key: Key) -> tuple[Manifest, Mapping[int, PageInfo]] | None:
        """A session's manifest, and what is known of its pages."""
        with self._reading():
            query = f"SELECT {COLUMNS}, id FROM sessions WHERE owner = ? AND name = ?"
            found = self._sql.execute(query, key).fetchone()
            if found is None:
                return None
            query = (
                "SELECT run, page, layers, tokens, pages.nbytes FROM holds LEFT JOIN pages ON pages.id = page "
                "WHERE session = ? ORDER BY run, place"
            )
            held = self._sql.execute(query, found[-1:]).fetchall()
        pages: dict[int, list[int]] = {}
        for run, page, *_ in held:
            pages.setdefault(run, []).append(page)
        known = {page: PageInfo(*known) for _, page, *known in held if known[0] is not None}
        manifest = manifest_of(found, pages)
        check_pages(manifest, known)
        return manifest, known

    def list_manifests(self, owner: str, prefix: str, after: str, limit: int) -> list[tuple[str, Manifest]]:
        """Up to `limit` manifests of an owner in order of id, without their pages."""
        query = f"SELECT {COLUMNS} FROM sessions WHERE owner = ? AND name > ? AND name >= ? AND name < ? ORDER BY name"
        with self._reading():
            found: list[tuple[str, Manifest]] = []
            for row in self._sql.execute(query, (owner, after, prefix, prefix + "\x7f")):
                try:
                    found.append((row[1], manifest_of(row, {})))
                except CorruptData as error:
                    log.error("session %s: %s; delete it", display_key((owner, row[1])), str(error))
                if len(found) == limit:
                    break
            return found

    def nbytes(self, key: Key) -> int | None:
        """What a session's manifest says that its tokens take packed."""
        with self._reading():
            found = self._sql.execute("SELECT nbytes FROM sessions WHERE owner = ? AND name = ?", key).fetchone()
        return None if found is None else int(found[0])

    def check(self) -> None:
        """See whether it can be written, and is where the next process will look for it."""
        self._check_place()
        with self.transaction():
            self._sql.execute(TOUCH)

    def _check_place(self) -> None:
        """What is to outlive the process has to be where the next one looks for it."""
        try:
            there = os.path.samestat(self._file, os.stat(self._directory / FILE))
        except OSError as error:
            raise DiskUnavailable(str(error)) from error
        if not there:
            raise DiskUnavailable(f"{self._directory / FILE} is another file than the one that was opened")

    def lru_session(self, skip: Collection[Key], before: float = inf) -> Key | None:
        """Who was used least recently among those that are not permanent, if that was before a moment."""
        query = "SELECT owner, name FROM sessions WHERE NOT permanent AND last_used < ? ORDER BY last_used LIMIT ?"
        with self._reading():
            found = self._sql.execute(query, (before, len(skip) + 1)).fetchall()
        return next((key for key in found if key not in skip), None)

    def retained_nbytes(self, keep: Collection[Key], since: float = inf) -> int:
        """Bytes counted for pages of permanent sessions, of these, and of those that were used since a moment."""
        which = " OR ".join(["permanent", "last_used >= ?", *["(owner = ? AND name = ?)"] * len(keep)])
        query = (
            f"SELECT nbytes, COUNT(*) FROM pages WHERE id IN (SELECT page FROM holds "
            f"WHERE session IN (SELECT id FROM sessions WHERE {which})) GROUP BY nbytes"
        )
        with self._reading():
            return self._cost(query, [since, *(part for key in keep for part in key)])

    def expired(self, now: float) -> list[Key]:
        """Some of those who have expired."""
        query = "SELECT owner, name FROM sessions WHERE expires <= ? LIMIT ?"
        with self._reading():
            return self._sql.execute(query, (now, _SOME)).fetchall()

    def owners(self) -> dict[str, tuple[int, int]]:
        """Of each owner the packed bytes and the number of sessions."""
        with self._reading():
            found = self._sql.execute("SELECT owner, SUM(nbytes), COUNT(*) FROM sessions GROUP BY owner")
            return {owner: (nbytes, count) for owner, nbytes, count in found}

    def vacuum(self) -> None:
        """Let the file shrink, a part at a time, once much of it lies idle."""
        with self._reading():
            (idle,), (blocks,) = self._one("PRAGMA freelist_count"), self._one("PRAGMA page_count")
            if idle > 4096 and idle * 4 > blocks:
                self._sql.execute(f"PRAGMA incremental_vacuum({_SOME})").fetchall()

    def close(self) -> None:
        """Bring the log into the file, and give up the lock."""
        self._sql.close()
