"""Library between the service and its files: compiled, preloaded, and controlled from here. Linux only."""

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("interpose.cpp")
# glibc's symbols and /proc are what it is written for.
AVAILABLE = sys.platform == "linux"


class Call(IntEnum):
    """System call, numbered as in `interpose.cpp`."""

    WRITE = 0
    SYNC = 1
    TRUNCATE = 2
    UNLINK = 3


class Action(IntEnum):
    """Fate of a call, numbered as in `interpose.cpp`."""

    NOTHING = 0
    FAIL = 1
    KILL = 2
    FULL = 3
    SLOW = 4


class _Control(ctypes.Structure):
    _fields_ = (
        ("action", ctypes.c_int32),
        ("calls", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("acted", ctypes.c_int32),
        ("after", ctypes.c_int64),
        ("times", ctypes.c_int64),
        ("taken", ctypes.c_int64),
        ("step", ctypes.c_int64),
    )


class Interposed:
    """The library, and the shared page of memory that controls it.

    Args:
        folder: directory for both.
    """

    def __init__(self, folder: Path) -> None:
        self._library = folder / "interpose.so"
        self._path = folder / "control"
        _compile(self._library)
        with self._path.open("w+b") as file:
            file.truncate(mmap.PAGESIZE)
            self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self._control = _Control.from_buffer(self._memory)

    def environment(self, directory: Path, journal: Path | None) -> dict[str, str]:
        """Return the environment that loads the library into a process.

        Args:
            directory: data directory. Calls on other files are not affected.
            journal: file in which writes and syncs are recorded.
        """
        preload = " ".join(filter(None, (str(self._library), os.environ.get("LD_PRELOAD"))))
        variables = {"LD_PRELOAD": preload, "HADAKV_FAULTS_CONTROL": str(self._path)}
        variables["HADAKV_FAULTS_DIRECTORY"] = str(directory.resolve())
        return variables | ({"HADAKV_FAULTS_JOURNAL": str(journal)} if journal else {})

    def arm(self, action: Action, calls: set[Call], *, after: int = 0, times: int = 1, error: int = 0) -> None:
        """Let `after` of these calls through. Then apply the action to the next `times` calls.

        For `SLOW`, which syncs only can be, `error` is the number of milliseconds.
        """
        self.disarm()
        self._control.calls = sum(1 << call for call in calls)
        self._control.after, self._control.times, self._control.error = after, times, error
        # The action is set last, because it is what the library looks at first.
        self._control.action = action

    def disarm(self) -> None:
        """Let every call through."""
        self._control.action = Action.NOTHING
        self._control.taken = False

    def set_wall_clock(self, seconds: int) -> None:
        """Set the wall clock ahead by seconds, or back. `disarm` does not change it."""
        self._control.step = seconds

    def report_full(self) -> None:
        """Let statvfs report a full disk, though writes still succeed."""
        self._control.taken = True

    @property
    def acted(self) -> int:
        """Number of calls that the action was applied to."""
        return int(self._control.acted)


def _compile(library: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "c++"
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library), "-ldl"], check=True, timeout=120)


class Change(NamedTuple):
    """Entry of the journal.

    Attributes:
        call: the system call.
        name: name of the file in the data directory.
        offset: position of a write; the new length for a truncation.
        content: bytes written.
    """

    call: Call
    name: str
    offset: int
    content: bytes


_HEAD = ctypes.sizeof(ctypes.c_int32) * 2 + ctypes.sizeof(ctypes.c_int64) * 2


def journal_of(path: Path) -> Iterator[Change]:
    """Yield the complete entries of the journal. The last one may be cut off when the process was killed."""
    with path.open("rb") as file:
        while len(head := file.read(_HEAD)) == _HEAD:
            call, name = (int.from_bytes(head[at : at + 4], sys.byteorder, signed=True) for at in (0, 4))
            offset, length = (int.from_bytes(head[at : at + 8], sys.byteorder, signed=True) for at in (8, 16))
            rest = file.read(name + length)
            if len(rest) < name + length:
                return
            yield Change(Call(call), os.fsdecode(rest[:name]), offset, rest[name:])
