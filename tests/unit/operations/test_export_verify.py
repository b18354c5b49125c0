"""An export's first look at its session: all of it, but not for ever, and not for those who have left."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.operations import export_session
from hadakv_service.operations.export_session import Export, ExportAborted
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import SessionStore
from support.sized_sessions import ANN, BACKEND, append

PAGES = 20


class Turns:
    """A device that counts whose turns it is."""

    def __init__(self) -> None:
        self.taken = 0

    async def call(self, work: Callable[[], Any]) -> Any:
        """Do it."""
        self.taken += 1
        return work()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SessionStore]:
    """A store with a session that is on disk, and steps of a page."""
    monkeypatch.setattr(export_session, "COPY_NBYTES", 1)
    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)
    append(store, ANN, PAGES * PAGE_TOKENS, durability="spill")
    store.close(float("inf"))
    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)
    yield store
    store.close(float("inf"))


def verify(store: SessionStore, is_gone: Callable[[], bool]) -> int:
    """How many turns it took, negative if it was given up."""
    turns = Turns()
    try:
        asyncio.run(Export(store.get(ANN).session, b"", 0).verify(cast(DeviceExecutor, turns), is_gone))
    except ExportAborted:
        turns.taken = -turns.taken
    return turns.taken


def test_all_of_it_is_read_and_stays_where_there_is_room(store: SessionStore) -> None:
    turns = verify(store, lambda: False)

    assert PAGES <= turns <= PAGES + 1
    assert store.pool.restores == PAGES
    assert all(page.is_resident for page in store.get(ANN).session.all_pages())
    assert verify(store, lambda: False) == 1, "what is there need not be read"


def test_for_those_who_have_left_nothing_more_is_read(store: SessionStore) -> None:
    assert verify(store, lambda: True) == -1
    assert store.pool.restores == 1


def test_nobody_waits_for_it_for_ever(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_session, "VERIFY_SECONDS", 0.0)

    assert verify(store, lambda: False) == 1
    assert store.pool.restores == 1
