"""Spool: a file of version 1 while it is imported. Its tensors are not in the order in which pages need them."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import Protocol

from hadakv_service.errors import InsufficientStorage
from hadakv_service.operations.files.source import PIECE_NBYTES, HashingReader

_PREFIX, _SUFFIX = "import-", ".spool"


class Spool(Protocol):
    """Bytes that can be read at any place once they are complete."""

    async def receive(self, reader: HashingReader, nbytes: int) -> None:
        """Read the next bytes of a file, and keep them."""
        ...

    def read(self, nbytes: int, offset: int) -> bytes | memoryview:
        """Return some of the bytes."""
        ...

    def close(self) -> None:
        """Free the space."""
        ...


class MemorySpool:
    """Spool in memory, for a service without a disk.

    Args:
        count: called with a number of bytes before they are allocated; raises if there are too many.
    """

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self._data = memoryview(b"")

    async def receive(self, reader: HashingReader, nbytes: int) -> None:
        """Read the next bytes of a file, and keep them."""
        self._count(nbytes)
        self._data = memoryview(bytearray(nbytes))
        await reader.read(self._data)

    def read(self, nbytes: int, offset: int) -> bytes | memoryview:
        """Return some of the bytes."""
        return self._data[offset : offset + nbytes]

    def close(self) -> None:
        """Free the memory."""
        self._data = memoryview(b"")


class SpoolDirectory:
    """The data directory as the place of spools. All of them together are limited.

    Args:
        path: the data directory. Spools that a crash has left there are removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._used = 0
        for left in path.glob(f"{_PREFIX}*{_SUFFIX}"):
            left.unlink(missing_ok=True)

    def reserve(self, nbytes: int, available: int) -> None:
        """Count bytes of a spool.

        Args:
            nbytes: bytes to be written.
            available: bytes that the disk store could add instead.

        Raises:
            InsufficientStorage: the spools would have more bytes than are available.
        """
        if self._used + nbytes > available:
            raise InsufficientStorage(
                f"A file of version 1 is stored temporarily on disk: {nbytes} bytes needed, "
                f"{max(available - self._used, 0)} available."
            )
        self._used += nbytes

    def release(self, nbytes: int) -> None:
        """Count bytes of a spool no longer."""
        self._used -= nbytes

    def create(self) -> int:
        """Create a file without a name, which vanishes when it is closed or the process ends. Return its descriptor."""
        path = self._path / f"{_PREFIX}{token_hex(8)}{_SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        path.unlink()
        return descriptor


class FileSpool:
    """Spool in the data directory.

    Args:
        directory: place of the file.
        nbytes: size of the spool.
        available: bytes that the disk store could add instead.

    Raises:
        InsufficientStorage: there is no space.
    """

    def __init__(self, directory: SpoolDirectory, nbytes: int, available: int) -> None:
        self._directory = directory
        self._nbytes = nbytes
        # A thread may still use the file when its request is cancelled. Its descriptor must not name another file then.
        self._lock = threading.Lock()
        self._is_closed = False
        directory.reserve(nbytes, available)
        try:
            self._descriptor = directory.create()
        except OSError as error:
            directory.release(nbytes)
            raise _disk_error(error) from error

    async def receive(self, reader: HashingReader, nbytes: int) -> None:
        """Read the next bytes of a file, and keep them."""
        for start in range(0, nbytes, PIECE_NBYTES):
            piece = memoryview(bytearray(min(PIECE_NBYTES, nbytes - start)))
            await reader.read(piece)
            try:
                await asyncio.to_thread(self._write, piece, start)
            except OSError as error:
                raise _disk_error(error) from error

    def _write(self, piece: memoryview, offset: int) -> None:
        with self._lock:
            while piece and not self._is_closed:
                written = os.pwrite(self._descriptor, piece, offset)
                piece, offset = piece[written:], offset + written

    def read(self, nbytes: int, offset: int) -> bytes | memoryview:
        """Return some of the bytes."""
        with self._lock:
            if self._is_closed:
                raise InsufficientStorage("The import was cancelled.")
            try:
                return os.pread(self._descriptor, nbytes, offset)
            except OSError as error:
                raise _disk_error(error) from error

    def close(self) -> None:
        """Remove the file."""
        with self._lock:
            self._is_closed = True
            os.close(self._descriptor)
        self._directory.release(self._nbytes)


def _disk_error(error: OSError) -> InsufficientStorage:
    return InsufficientStorage(f"The disk cannot be written: {error.strerror}. Nothing was stored.")
