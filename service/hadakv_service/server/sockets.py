"""Bind Unix domain sockets, and raise the limit of open files."""

import errno
import logging
import os
import resource
import socket
import stat
from pathlib import Path

log = logging.getLogger(__name__)


# File descriptors for everything but accepted connections, including connections that are being set up.
SPARE_FILES = 512


def inode(path: Path) -> int | None:
    """Return the inode of a path, or None if it cannot be examined."""
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def listen_error(host: str, port: int, error: OSError) -> OSError:
    """Return an error that says in plain words why the service cannot listen on an address, and what to do."""
    if isinstance(error, socket.gaierror):
        return OSError(f"cannot listen on {host}: unknown host name. Choose another --host.")
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    reasons = {
        errno.EADDRINUSE: "address already in use. Stop that process, or choose another --port.",
        errno.EADDRNOTAVAIL: "this machine does not have the address. Choose another --host.",
    }
    reason = reasons.get(error.errno or 0) or (os.strerror(error.errno).lower() if error.errno else str(error))
    return OSError(f"cannot listen on {address}: {reason}")


def bind_unix(path: Path, mode: int) -> socket.socket:
    """Bind a socket to a path. Replace the socket of a process that no longer runs.

    Args:
        path: path of the socket.
        mode: permissions of the socket. Users with write permission may connect.

    Raises:
        OSError: a process listens on the path, or the path exists and is not a socket.
    """
    _remove_stale_socket(path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(str(path))
        # Connections are refused until the socket listens, so this is early enough.
        path.chmod(mode)
    except OSError as error:
        bound.close()
        raise OSError(f"cannot bind {path}: {error.strerror or error}") from error
    return bound


def _remove_stale_socket(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(f"{path} exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        # A process whose queue is full does not accept connections, but it runs.
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise OSError(f"cannot replace {path}: {error.strerror or error}") from error
    raise OSError(f"another process already listens on {path}")


def raise_open_file_limit(connections: int) -> int:
    """Raise the limit of open files to what the connections need. On a Mac the default is 256 files.

    Args:
        connections: wanted number of connections.

    Returns:
        Possible number of connections, at most the wanted number.
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
    log.warning("limit of open files is %d: at most %d connections instead of %d", possible, fewer, connections)
    return min(fewer, connections)
