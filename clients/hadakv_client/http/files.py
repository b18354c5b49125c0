"""Files on the caller's disk: one that is sent as a body, and one that an answer becomes."""

import json
import os
from collections.abc import Callable, Iterator
from errno import EEXIST
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

from hadakv_client.http.body import PIECE_NBYTES

OCTETS = "application/octet-stream"
# Bytes so far, and of all of them, as far as that is known.
Progress = Callable[[int, int | None], None]
PathLike = str | os.PathLike[str]

_METADATA = "__metadata__"
_FORMAT = "hadakv-session"
# As much as the service reads of one.
_MAX_HEADER_NBYTES = 1 << 20


class FileBody:
    """A file as a request's body, read anew each time it is sent, and never as a whole.

    Args:
        path: of a file that does not change meanwhile.
        progress: called after each piece.

    Raises:
        OSError: there is no such file.
    """

    joined = None

    def __init__(self, path: PathLike, progress: Progress | None = None) -> None:
        self._path = Path(path)
        self._progress = progress or _ignore
        self.nbytes = self._path.stat().st_size

    def __iter__(self) -> Iterator[bytes]:
        """The file in pieces of up to 1 MiB."""
        sent = 0
        with self._path.open("rb") as file:
            while piece := file.read(PIECE_NBYTES):
                yield piece
                sent += len(piece)
                self._progress(sent, self.nbytes)


def session_in(path: PathLike) -> str:
    """The id of the session that was exported to a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is none that a session was exported to.
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
        raise ValueError(f"{os.fspath(path)} is no file that a session was exported to")
    return session


class Target:
    """Where an answer's body goes instead of memory: a file, which is there once it is whole, or as it was before.

    Args:
        path: of the file; it is replaced.
        progress: called after each piece.
    """

    def __init__(self, path: PathLike, progress: Progress | None = None) -> None:
        self._path = Path(path)
        self._progress = progress or _ignore

    def open(self, nbytes: int | None) -> "Landing":
        """Begin an attempt to write the file.

        Args:
            nbytes: how many there will be, if that is known.

        Raises:
            OSError: nothing can be written there.
        """
        return Landing(self._path, nbytes, self._progress)


class Landing:
    """A file that is written beside its target and takes its place at the end; without `land` nothing is left of it."""

    def __init__(self, path: Path, nbytes: int | None, progress: Progress) -> None:
        # Where a link leads; what is no file, a terminal or a directory, is not to be replaced by one.
        self._path = path.resolve()
        if self._path.exists() and not self._path.is_file():
            raise FileExistsError(EEXIST, "is no regular file", str(path))
        self._nbytes = nbytes
        self._progress = progress
        self._written = 0
        # Of a name nobody else has, so that two exports do not write to one file.
        self._beside = self._path.with_name(f".{self._path.name[:200]}.{token_hex(4)}.part")
        try:
            self._file = self._beside.open("xb")
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
            self._beside.unlink(missing_ok=True)

    def write(self, piece: bytes) -> None:
        """Write what came next."""
        self._file.write(piece)
        self._written += len(piece)
        self._progress(self._written, self._nbytes)

    def land(self) -> None:
        """Put the file, which is whole, in its place, so that it stays there if the machine stops now."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._beside.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _ignore(done: int, total: int | None) -> None:
    """Tell nobody how far it is."""
