"""The file of the embedded tier: opened, checked, made. SQLite in WAL mode, used by one process at a time."""

import errno
import os
import sqlite3
import stat
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from hadakv_kernels import tables
from hadakv_service import __version__
from hadakv_service.storage.disk.interface import DataDirectoryError

FILE = "sessions.hadakv"
# "hdkv"
APPLICATION_ID = 0x68646B76
# Of the tables below and of what is in their columns.
FORMAT = 1
_SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, nbytes INTEGER NOT NULL, created REAL NOT NULL,
    last_used REAL NOT NULL, expires REAL, permanent INTEGER NOT NULL, checksum BLOB NOT NULL, header BLOB NOT NULL,
    UNIQUE (owner, name));
CREATE INDEX by_use ON sessions (last_used) WHERE NOT permanent;
CREATE INDEX by_end ON sessions (expires) WHERE expires IS NOT NULL;
CREATE TABLE pages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, layers INTEGER NOT NULL, tokens INTEGER NOT NULL, nbytes INTEGER NOT NULL,
    checksum BLOB NOT NULL, header BLOB NOT NULL, content BLOB NOT NULL);
CREATE TABLE holds (
    session INTEGER NOT NULL, run INTEGER NOT NULL, place INTEGER NOT NULL, page INTEGER NOT NULL,
    PRIMARY KEY (session, run, place)) WITHOUT ROWID;
CREATE INDEX by_page ON holds (page);
"""
# In blocks of 4 KiB large blobs are read and written at half the speed; in blocks of 64 KiB small ones cost more. The
# log is brought into the file every 64 MiB, and the fsync that takes is shared by as much; on a small disk sooner.
BLOCK_NBYTES = 32 << 10
_LOG_NBYTES = 64 << 20
# What a block of the tree has beside rows, and a page's row beside its bytes: other columns, the session's hold on it.
_LEAF_NBYTES, _ROW_NBYTES = 8, 160
# What says where a row goes on, and how long it is.
_LINK_NBYTES = 16
_LOG_SHARE = 16
_BUSY_SECONDS = 2.0
_ELSEWHERE = "choose another --data-dir, or keep nothing on disk with --disk-budget 0"
_MAY_NOT = (errno.EACCES, errno.EPERM, errno.EROFS)
_CANNOT_WRITE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
# Writes something. Always something else, as SQLite does not write what is there already.
TOUCH = "REPLACE INTO about VALUES ('touched', hex(randomblob(8)))"


def open_database(directory: Path) -> sqlite3.Connection:
    """The database in a directory, which is made if it is missing; nobody else can open it until it is closed.

    Raises:
        TierRefused: it is in use, another version's, no database, a link, or cannot be written; or the directory is
            open to others, or cannot be made.
    """
    path = _place(directory)
    new = path.stat().st_size == 0
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _configure(connection, log_nbytes(directory), new=new)
        # Whoever made the file may have been stopped before anything was in it.
        if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (0,):
            _create(connection)
        _check(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise _refusal(path, error) from error
    except DataDirectoryError:
        connection.close()
        raise
    return connection


def make_directory(directory: Path) -> None:
    """See to it that there is a directory, which nobody else may look into if it is made here.

    Raises:
        TierRefused: it cannot be made, or something else is in its place.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataDirectoryError(f"{directory}: no directory, nor can it be made one; {_ELSEWHERE}") from error
    except OSError as error:
        raise DataDirectoryError(f"{directory}: cannot be made ({error.strerror}); {_ELSEWHERE}") from error


def log_nbytes(directory: Path) -> int:
    """How large the log may become before it is brought into the file."""
    disk = os.statvfs(directory)
    return min(_LOG_NBYTES, max(disk.f_blocks * disk.f_frsize // _LOG_SHARE, 32 * BLOCK_NBYTES))


def free_nbytes(directory: Path) -> int:
    """Bytes that the disk has for more pages.

    What is left besides is for the log to grow, and for what is in it to be brought into the file: without that
    nobody could be deleted any longer, as that is written, too.
    """
    disk = os.statvfs(directory)
    return max(0, disk.f_bavail * disk.f_frsize - 2 * log_nbytes(directory) - (1 << 20))


@lru_cache(4096)
def page_cost(nbytes: int) -> int:
    """Bytes of the file that a page of so many bytes comes to, with what ties it to its session.

    A block has rows side by side as long as they fit. Of a row that is larger than a block, whole blocks are filled
    first, and what is left stands in the tree if it fits there
    (https://www.sqlite.org/fileformat2.html#b_tree_pages, "Cell Payload Overflow Pages").
    """
    usable = BLOCK_NBYTES - _LEAF_NBYTES
    row = nbytes + _ROW_NBYTES
    if row <= BLOCK_NBYTES - 35:
        return -(-BLOCK_NBYTES // (usable // row))
    least = (BLOCK_NBYTES - 12) * 32 // 255 - 23
    inside = least + (row - least) % (BLOCK_NBYTES - 4)
    if inside > BLOCK_NBYTES - 35:
        inside = least
    blocks = -(-(row - inside) // (BLOCK_NBYTES - 4))
    return blocks * BLOCK_NBYTES - (-BLOCK_NBYTES // (usable // (inside + _LINK_NBYTES)))


def discard_failed_commit(connection: sqlite3.Connection) -> bool:
    """See to it that a transaction whose commit failed never comes back.

    The log may have all of it, if only the sync has failed, and who opens the file next would take it for made.

    Returns:
        whether it is certain that what comes after will outlive a loss of power.
    """
    with suppress(sqlite3.Error):
        # What was made before goes into the file, and the log is empty.
        ((busy, *_),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return not busy
    with suppress(sqlite3.Error):
        # Where that is not possible now, something else is written in its place, so that the log ends there.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(TOUCH)
    return False


def _refusal(path: Path, error: sqlite3.Error) -> DataDirectoryError:
    # The lowest byte is what went wrong, those above tell where.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DataDirectoryError(f"{path}: in use by another process; stop that, or choose another --data-dir")
    if code == sqlite3.SQLITE_NOTADB:
        return DataDirectoryError(f"{path}: not a file of this service; move it away, or choose another --data-dir")
    if code in _CANNOT_WRITE:
        return _unwritable(path.parent, str(error))
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return DataDirectoryError(f"{path}: {error}; see to the disk, {_ELSEWHERE}")
    return DataDirectoryError(f"{path}: {error}; move it away, or choose another --data-dir")


def _unwritable(place: Path, reason: str | None) -> DataDirectoryError:
    return DataDirectoryError(f"{place}: cannot be written ({reason}); let this user write there, {_ELSEWHERE}")


def _place(directory: Path) -> Path:
    """The file, which exists from then on, readable by this user alone."""
    make_directory(directory)
    found = directory.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise DataDirectoryError(
            f"{directory}: another user's, who may put in what they like; choose another --data-dir"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DataDirectoryError(f"{directory}: others may write there, and put in what they like; chmod it to 700")
    path = directory / FILE
    try:
        for each in (path, *(path.with_name(FILE + suffix) for suffix in ("-wal", "-shm", "-journal"))):
            if each.is_symlink():
                raise DataDirectoryError(
                    f"{each}: a symbolic link; what it points to is none of this service's business"
                )
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unopened(path, error) from error
    try:
        # A copy that was brought back, say, may be open to others; SQLite gives its log the same mode.
        os.fchmod(file, 0o600)
    except PermissionError as error:
        raise DataDirectoryError(f"{path}: another user's; choose another --data-dir") from error
    except OSError as error:
        raise _unopened(path, error) from error
    finally:
        os.close(file)
    return path


def _unopened(path: Path, error: OSError) -> DataDirectoryError:
    if error.errno == errno.EISDIR:
        return DataDirectoryError(
            f"{path}: a directory, where a file should be; move it away, or choose another --data-dir"
        )
    if error.errno in _MAY_NOT:
        return _unwritable(path if os.path.lexists(path) else path.parent, error.strerror)
    return DataDirectoryError(f"{path}: cannot be opened ({error.strerror}); {_ELSEWHERE}")


def _configure(connection: sqlite3.Connection, log: int, *, new: bool) -> None:
    if new:
        connection.execute(f"PRAGMA page_size = {BLOCK_NBYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    for setting in (
        "locking_mode = EXCLUSIVE",
        "journal_mode = WAL",
        "synchronous = NORMAL",
        f"wal_autocheckpoint = {log // BLOCK_NBYTES}",
        f"journal_size_limit = {log}",
        # Some builds of SQLite write zeros over all that is deleted, which takes as much of the log.
        "secure_delete = FAST",
        "cache_size = -8192",
        "temp_store = MEMORY",
        "cell_size_check = ON",
        "trusted_schema = OFF",
        # On a Mac fsync alone does not reach the disk.
        "fullfsync = ON",
        "checkpoint_fullfsync = ON",
    ):
        connection.execute(f"PRAGMA {setting}")
    # Takes the lock, which is kept.
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("COMMIT")


def _create(connection: sqlite3.Connection) -> None:
    about = {"tables": tables.fingerprint(), "made by": __version__}
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA.split(";\n"):
        connection.execute(statement)
    connection.executemany("INSERT INTO about VALUES (?, ?)", about.items())
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("COMMIT")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    def number(pragma: str) -> int:
        return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])

    if number("application_id") != APPLICATION_ID:
        raise DataDirectoryError(f"{path}: not a file of this service; move it away, or choose another --data-dir")
    other = "use that version, move the file away, or choose another --data-dir"
    if (found := number("user_version")) != FORMAT:
        raise DataDirectoryError(
            f"{path}: written by another version, in format {found} where this one has {FORMAT}; {other}"
        )
    about = dict(connection.execute("SELECT name, value FROM about"))
    if about.get("tables") != tables.fingerprint():
        made_by = f"hadakv {about['made by']}" if "made by" in about else "another version of hadakv"
        raise DataDirectoryError(f"{path}: packed with other tables of the codec, by {made_by}; {other}")
