"""Bind Unix domain sockets; raise the limit of open files."""

import logging
import resource
import socket
import stat
from pathlib import Path

log = logging.getLogger(__name__)


# File descriptors for all but connections, and those for connections that are in the middle of being made.
SPARE_FILES = 512


def inode(path: Path) -> int | None:
    """Return the inode of a path, or None if it cannot be examined."""
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def bind_unix(path: Path, mode: int) -> socket.socket:
    """A socket bound to a path, in place of one that a process left there when it ended.

    Args:
        path: of the socket.
        mode: its permissions; who may write may connect.

    Raises:
        OSError: a process listens there, or something else is in the way.
    """
    _remove_left_over(path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(str(path))
        # Nobody can connect before it listens.
        path.chmod(mode)
    except OSError as error:
        bound.close()
        raise OSError(f"cannot bind {path}: {error.strerror or error}") from error
    return bound


def _remove_left_over(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(f"{path} is in the way, and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        # One whose queue is full does not answer, but lives.
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise OSError(f"{path} is in the way: {error.strerror or error}") from error
    raise OSError(f"a process listens on {path} already")


def raise_open_file_limit(connections: int) -> int:
    """Raise the number of files that may be open, which on a Mac is 256, to what so many connections need.

    Returns:
        How many connections there can be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    except (ValueError, OSError):
        possible = soft
    if possible == wanted:
        return connections
    fewer = max(possible - SPARE_FILES, possible // 2)
    log.warning("only %d files may be open, so that there can be %d connections, not %d", possible, fewer, connections)
    return min(fewer, connections)
