"""Export.verify: reads all pages, within a time limit, while the client is connected."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.operations.files import export_session
from hadakv_service.operations.files.export_session import Export, ExportAborted
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import SessionStore
from support.inputs.sized_sessions import ANN, BACKEND, append

PAGES = 20


class CountingDevice:
    """A device that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    async def call(self, work: Callable[[], Any]) -> Any:
        """Call the function."""
        self.calls += 1
        return work()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SessionStore]:
    """Return a store with a session on disk. Each job reads one page."""
    monkeypatch.setattr(export_session, "VERIFY_NBYTES", 1)
    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)
    append(store, ANN, PAGES * PAGE_TOKENS, durability="spill")
    store.close(float("inf"))
    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)
    yield store
    store.close(float("inf"))


def verify(store: SessionStore, is_disconnected: Callable[[], bool]) -> int:
    """Return the number of jobs of a check, negative if it was aborted."""
    device = CountingDevice()
    export = Export(store.get(ANN).session, store.pool, b"", 0)
    try:
        asyncio.run(export.verify(cast(DeviceExecutor, device), is_disconnected))
    except ExportAborted:
        device.calls = -device.calls
    return device.calls


def test_verify_reads_all_pages_and_keeps_none(store: SessionStore) -> None:
    device = verify(store, lambda: False)

    assert PAGES <= device <= PAGES + 1
    assert store.pool.restores == PAGES
    assert not any(page.is_resident for page in store.get(ANN).session.all_pages())


def test_verify_does_not_read_resident_pages(store: SessionStore) -> None:
    for page in store.get(ANN).session.all_pages():
        page.load()

    assert verify(store, lambda: False) == 1
    assert store.pool.restores == PAGES


def test_verify_stops_when_client_disconnects(store: SessionStore) -> None:
    assert verify(store, lambda: True) == -1
    assert store.pool.restores == 1


def test_verify_stops_after_time_limit(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_session, "VERIFY_SECONDS", 0.0)

    assert verify(store, lambda: False) == 1
    assert store.pool.restores == 1
