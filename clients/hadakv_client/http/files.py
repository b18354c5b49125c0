"""Session files: the body of an import, and the destination of an export."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EEXIST
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

from hadakv_client.http.body import CHUNK_NBYTES

OCTET_STREAM = "application/octet-stream"
# Called with the bytes transferred so far and the total size. The total is None if it is not known.
Progress = Callable[[int, int | None], None]
PathLike = str | os.PathLike[str]

_METADATA = "__metadata__"
_FORMAT = "hadakv-session"
# Same limit as in the service.
_MAX_HEADER_NBYTES = 16 << 20


class FileBody:
    """Request body that is read from a file in chunks. It is read again for each attempt.

    Args:
        path: path of the file, which must not change while it is sent.
        progress: called after each chunk.

    Raises:
        OSError: the file does not exist.
    """

    as_bytes = None

    def __init__(self, path: PathLike, progress: Progress | None = None) -> None:
        self._path = Path(path)
        self._progress = progress or _ignore_progress
        self.nbytes = self._path.stat().st_size

    def __iter__(self) -> Iterator[bytes]:
        """Yield the file in chunks of at most 1 MiB."""
        sent = 0
        with self._path.open("rb") as file:
            while chunk := file.read(CHUNK_NBYTES):
                yield chunk
                sent += len(chunk)
                self._progress(sent, self.nbytes)


def exported_session_id(path: PathLike) -> str:
    """Return the id of the session in an exported file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a hadakv session file.
    """
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= _MAX_HEADER_NBYTES else b""
    try:
        metadata: Any = json.loads(header)[_METADATA]
        session: Any = metadata["session"] if metadata["format"] == _FORMAT else None
    except (ValueError, RecursionError, LookupError, TypeError):
        session = None
    if not isinstance(session, str):
        raise ValueError(f"{os.fspath(path)} is not a hadakv session file")
    return session


class FileDestination:
    """File that receives the body of a response. It is replaced only after the whole body was written.

    Args:
        path: path of the file.
        progress: called after each chunk.
    """

    def __init__(self, path: PathLike, progress: Progress | None = None) -> None:
        self._path = Path(path)
        self._progress = progress or _ignore_progress

    def open(self, nbytes: int | None) -> "AtomicFileWriter":
        """Start an attempt to write the file.

        Args:
            nbytes: size of the body in bytes; None if it is not known.

        Raises:
            OSError: the path cannot be written.
        """
        return AtomicFileWriter(self._path, nbytes, self._progress)


class AtomicFileWriter:
    """Temporary file in the directory of its destination.

    `commit` replaces the destination. Without it, the temporary file is removed on exit.

    Args:
        path: path of the destination.
        nbytes: expected size in bytes, for `progress`; None if it is not known.
        progress: called after each chunk.

    Raises:
        FileExistsError: the destination exists and is not a regular file.
        OSError: the directory cannot be written.
    """

    def __init__(self, path: Path, nbytes: int | None, progress: Progress) -> None:
        # Follow links, so that a link stays a link. Do not replace a terminal or a directory by a file.
        self._path = path.resolve()
        if self._path.exists() and not self._path.is_file():
            raise FileExistsError(EEXIST, "is not a regular file", str(path))
        self._nbytes = nbytes
        self._progress = progress
        self._written = 0
        # Use a random name, so that two exports do not write to the same file.
        self._temporary = self._path.with_name(f".{self._path.name[:200]}.{token_hex(4)}.part")
        try:
            self._file = self._temporary.open("xb")
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Write the next chunk."""
        with self._named_errors():
            self._file.write(chunk)
        self._written += len(chunk)
        self._progress(self._written, self._nbytes)

    def commit(self) -> None:
        """Replace the destination with the complete file. It survives a crash of the machine after this returns."""
        with self._named_errors():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Give errors the name of the destination, as a write to an open file has none."""
        try:
            yield
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(self._path)) from None


def _ignore_progress(done: int, total: int | None) -> None:
    """Do nothing."""
