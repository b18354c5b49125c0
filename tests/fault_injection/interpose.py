"""What stands between the service and its files: compiled, loaded into the process, told what to do. Linux only."""

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
    """What the service asks of the kernel, in the order of `interpose.cpp`."""

    WRITE = 0
    SYNC = 1
    TRUNCATE = 2
    UNLINK = 3


class Action(IntEnum):
    """What becomes of a call, likewise."""

    NOTHING = 0
    FAIL = 1
    KILL = 2
    FULL = 3


class _Control(ctypes.Structure):
    _fields_ = (
        ("action", ctypes.c_int32),
        ("calls", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("acted", ctypes.c_int32),
        ("after", ctypes.c_int64),
        ("times", ctypes.c_int64),
        ("taken", ctypes.c_int64),
    )


class Interposed:
    """The library, and the page of memory through which it is told what to do.

    Args:
        folder: where both lie.
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
        """What a process needs to be under its influence.

        Args:
            directory: the data directory, which alone is meant.
            journal: where it notes what is written and synced.
        """
        preload = " ".join(filter(None, (str(self._library), os.environ.get("LD_PRELOAD"))))
        told = {"LD_PRELOAD": preload, "HADAKV_FAULTS_CONTROL": str(self._path)}
        told["HADAKV_FAULTS_DIRECTORY"] = str(directory.resolve())
        return told | ({"HADAKV_FAULTS_JOURNAL": str(journal)} if journal else {})

    def arm(self, action: Action, calls: set[Call], *, after: int = 0, times: int = 1, error: int = 0) -> None:
        """Let so many of those calls go through, and then so many meet their fate."""
        self.disarm()
        self._control.calls = sum(1 << call for call in calls)
        self._control.after, self._control.times, self._control.error = after, times, error
        # Last, as that is what counts.
        self._control.action = action

    def disarm(self) -> None:
        """Let every call go through again."""
        self._control.action = Action.NOTHING
        self._control.taken = False

    def take_all_room(self) -> None:
        """Let the disk say that it has nothing free, though it takes what is written."""
        self._control.taken = True

    @property
    def acted(self) -> int:
        """How many calls have met their fate."""
        return int(self._control.acted)


def _compile(library: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "c++"
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library), "-ldl"], check=True, timeout=120)


class Change(NamedTuple):
    """A line of the journal.

    Attributes:
        call: what was done.
        name: to which file of the directory.
        offset: where; of a truncation the file's new length.
        content: what was written there.
    """

    call: Call
    name: str
    offset: int
    content: bytes


_HEAD = ctypes.sizeof(ctypes.c_int32) * 2 + ctypes.sizeof(ctypes.c_int64) * 2


def journal_of(path: Path) -> Iterator[Change]:
    """What the journal says, without the part there may be of what the process was to do when it was killed."""
    with path.open("rb") as file:
        while len(head := file.read(_HEAD)) == _HEAD:
            call, name = (int.from_bytes(head[at : at + 4], sys.byteorder, signed=True) for at in (0, 4))
            offset, length = (int.from_bytes(head[at : at + 8], sys.byteorder, signed=True) for at in (8, 16))
            rest = file.read(name + length)
            if len(rest) < name + length:
                return
            yield Change(Call(call), os.fsdecode(rest[:name]), offset, rest[name:])
