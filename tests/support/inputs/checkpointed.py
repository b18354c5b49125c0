"""A store that writes checkpoints, which a crash replaces by another one."""

from pathlib import Path

from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import Key, SessionStore
from support.inputs.sized_sessions import BACKEND, Clock, append

SECONDS = 100.0
DISK = 1 << 30


class Place:
    """Data directory with a store, which a crash replaces by another one."""

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self._directory = directory
        self.store = self.open()

    def open(self, memory: int = 1 << 20, disk: int = DISK) -> SessionStore:
        """Open a store on the directory."""
        self.store = SessionStore(
            memory, self.clock, disk=SqliteStore(self._directory, disk), backend=BACKEND, checkpoint_seconds=SECONDS
        )
        self.store._table.dirty.now = self.clock
        return self.store

    def begin(self) -> bool:
        """Begin a step, and wait until it is written, but do not record it. Return whether there is one."""
        write = self.store.checkpoints.begin()
        if write:
            write.exception()
        return write is not None

    def checkpoint(self) -> int:
        """Write all sessions that are due. Return the number of steps."""
        steps = 0
        while self.begin():
            self.store.checkpoints.settle()
            steps += 1
        return steps

    def crash(self, disk: int = DISK) -> SessionStore:
        """Close the file as a killed process does, with nothing written, and open another store."""
        self.store.disk.close()
        return self.open(disk=disk)


def spill(store: SessionStore, key: Key, tokens: int) -> None:
    append(store, key, tokens, durability="spill")
    assert not store.group_commit()


def tokens(store: SessionStore, key: Key) -> int | None:
    """Return the number of tokens of a session, all of which can be read; None if there is none."""
    record = store.find(key)
    if record is None:
        return None
    length = sum(run.stop for run in record.session.runs)
    assert record.session.read(0, 1, 0, length, BACKEND).tokens == length
    return length
