"""Open, lock, check and create the SQLite file; size estimates. The file is in WAL mode, for one process at a time."""

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
from hadakv_service.storage.disk.schema import APPLICATION_ID, FORMAT, SCHEMA

FILE = "sessions.hadakv"
# With blocks of 4 KiB, large blobs are read and written at half the speed. With 64 KiB, small blobs take more space.
# The log is checkpointed every 64 MiB, so that one fsync is shared by as much data; on a small disk more often.
BLOCK_NBYTES = 32 << 10
_LOG_NBYTES = 64 << 20
# Overhead of a block of the tree; overhead of a page row: its other columns, and its row in `holds`.
_LEAF_NBYTES, _ROW_NBYTES = 8, 160
# Pointer to the overflow blocks of a row, and its length.
_LINK_NBYTES = 16
_LOG_SHARE = 16
_BUSY_SECONDS = 2.0
_OTHER_DIRECTORY = "choose another --data-dir, or keep nothing on disk with --disk-budget 0."
_PERMISSION_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS)
_CANNOT_WRITE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
# Write something. The value is random because SQLite does not write a row that does not change.
TOUCH = "REPLACE INTO about VALUES ('touched', hex(randomblob(8)))"


def open_database(directory: Path) -> sqlite3.Connection:
    """Open the database in a directory, and lock it for this process. Create both if they are missing.

    Raises:
        DataDirectoryError: the file is in use, belongs to another version, is no database, is a link, or cannot be
            written; or other users may write to the directory, or it cannot be created.
    """
    path = _prepare_file(directory)
    new = path.stat().st_size == 0
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _configure(connection, log_nbytes(directory), new=new)
        # A process that created the file may have been stopped before it created the tables.
        if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (0,):
            _create(connection)
        _check(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise _open_error(path, error) from error
    except DataDirectoryError:
        connection.close()
        raise
    return connection


def make_directory(directory: Path) -> None:
    """Create a directory that only this user can read, unless it exists.

    Raises:
        DataDirectoryError: the directory cannot be created, or the path is not a directory.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataDirectoryError(f"{directory} is not a directory. {_OTHER_DIRECTORY.capitalize()}") from error
    except OSError as error:
        raise DataDirectoryError(
            f"{directory} cannot be created ({error.strerror}). {_OTHER_DIRECTORY.capitalize()}"
        ) from error


def log_nbytes(directory: Path) -> int:
    """Return the size in bytes at which the log is checkpointed."""
    disk = os.statvfs(directory)
    return min(_LOG_NBYTES, max(disk.f_blocks * disk.f_frsize // _LOG_SHARE, 32 * BLOCK_NBYTES))


def free_nbytes(directory: Path) -> int:
    """Return the bytes that the file system has for more pages.

    Some space is kept for the log to grow, and for checkpoints of the log. Without it no session could be deleted any
    more, because deletions are written too.
    """
    disk = os.statvfs(directory)
    return max(0, disk.f_bavail * disk.f_frsize - 2 * log_nbytes(directory) - (1 << 20))


@lru_cache(4096)
def page_cost(nbytes: int) -> int:
    """Return the bytes of the file that a page of `nbytes` bytes takes, with its row in `holds`.

    Small rows share a block. A row that is larger than a block fills overflow blocks first. The remaining bytes stay in
    the tree if they fit there
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
    """Make sure that a transaction whose commit failed does not reappear after a restart.

    If only the sync has failed, the log may have the whole transaction. The next process would take it as committed.

    Returns:
        whether later synced transactions are certain to survive a power loss.
    """
    with suppress(sqlite3.Error):
        # Write earlier transactions into the file, and empty the log.
        ((busy, *_),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return not busy
    with suppress(sqlite3.Error):
        # The checkpoint failed. Overwrite the transaction with another one, so that the log ends there.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(TOUCH)
    return False


def _open_error(path: Path, error: sqlite3.Error) -> DataDirectoryError:
    # The lowest byte is the kind of error, the upper bytes are details.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DataDirectoryError(
            f"{path} is in use by another process. Stop that process, or choose another --data-dir."
        )
    if code == sqlite3.SQLITE_NOTADB:
        return DataDirectoryError(f"{path} is not a hadakv file. Move it away, or choose another --data-dir.")
    if code in _CANNOT_WRITE:
        return _unwritable(path.parent, str(error))
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return DataDirectoryError(f"{path}: {error}. Check the disk, {_OTHER_DIRECTORY}")
    return DataDirectoryError(f"{path}: {error}. Move it away, or choose another --data-dir.")


def _unwritable(place: Path, reason: str | None) -> DataDirectoryError:
    return DataDirectoryError(f"{place} cannot be written ({reason}). Let this user write there, {_OTHER_DIRECTORY}")


def _prepare_file(directory: Path) -> Path:
    """Check the directory, and create the file unless it exists. Only this user can read it."""
    make_directory(directory)
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise DataDirectoryError(f"{directory} is owned by another user. Choose another --data-dir.")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DataDirectoryError(f"{directory} can be written by other users. Run chmod 700 on it.")
    path = directory / FILE
    try:
        for each in (path, *(path.with_name(FILE + suffix) for suffix in ("-wal", "-shm", "-journal"))):
            if each.is_symlink():
                raise DataDirectoryError(
                    f"{each} is a symbolic link. Choose another --data-dir, or move the link away."
                )
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _os_error(path, error) from error
    try:
        # A restored backup may be readable by others. SQLite gives its log the same mode.
        os.fchmod(file, 0o600)
    except PermissionError as error:
        raise DataDirectoryError(f"{path} is owned by another user. Choose another --data-dir.") from error
    except OSError as error:
        raise _os_error(path, error) from error
    finally:
        os.close(file)
    return path


def _os_error(path: Path, error: OSError) -> DataDirectoryError:
    if error.errno == errno.EISDIR:
        return DataDirectoryError(f"{path} is a directory, not a file. Move it away, or choose another --data-dir.")
    if error.errno in _PERMISSION_ERRORS:
        return _unwritable(path if os.path.lexists(path) else path.parent, error.strerror)
    return DataDirectoryError(f"{path} cannot be opened ({error.strerror}). {_OTHER_DIRECTORY.capitalize()}")


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
        # Some builds of SQLite overwrite deleted data with zeros, which takes as much space in the log.
        "secure_delete = FAST",
        "cache_size = -8192",
        "temp_store = MEMORY",
        "cell_size_check = ON",
        "trusted_schema = OFF",
        # On macOS, fsync alone does not reach the disk.
        "fullfsync = ON",
        "checkpoint_fullfsync = ON",
    ):
        connection.execute(f"PRAGMA {setting}")
    # Take the lock. It is held until the connection is closed.
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("COMMIT")


def _create(connection: sqlite3.Connection) -> None:
    about = {"tables": tables.fingerprint(), "made by": __version__}
    connection.execute("BEGIN IMMEDIATE")
    for statement in SCHEMA.split(";\n"):
        connection.execute(statement)
    connection.executemany("INSERT INTO about VALUES (?, ?)", about.items())
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("COMMIT")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    def number(pragma: str) -> int:
        return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])

    if number("application_id") != APPLICATION_ID:
        raise DataDirectoryError(f"{path} is not a hadakv file. Move it away, or choose another --data-dir.")
    advice = "Use that version, move the file away, or choose another --data-dir."
    if (found := number("user_version")) != FORMAT:
        raise DataDirectoryError(
            f"{path} was written by another version: its format is {found}, this version has {FORMAT}. {advice}"
        )
    about = dict(connection.execute("SELECT name, value FROM about"))
    if about.get("tables") != tables.fingerprint():
        made_by = f"hadakv {about['made by']}" if "made by" in about else "another version of hadakv"
        raise DataDirectoryError(f"{path} was written with other codec tables, by {made_by}. {advice}")
