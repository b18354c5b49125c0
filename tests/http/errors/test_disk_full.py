"""Full and missing disks: the error names what is full, the log says what to do, readiness reports it."""

import shutil
from pathlib import Path

import pytest

from hadakv_service.errors import InsufficientStorage
from hadakv_service.storage.disk import sqlite_store
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import SessionStore
from support.inputs.sized_sessions import ANN, BACKEND, append
from support.services.restarted_service import K, V, holds, service

MEMORY = 1 << 20


def rejection(store: SessionStore) -> str:
    """Fill a store with a session that must not be evicted. Return the error."""
    for _ in range(100):
        append(store, ANN, 1000, durability="ack")
        for error in store.group_commit().values():
            assert isinstance(error, InsufficientStorage)
            return error.detail
    raise AssertionError("everything has room")


def test_full_file_system_is_named_and_logged_at_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = SessionStore(MEMORY, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)
    append(store, ANN, 1, durability="ack")
    assert not store.group_commit()
    monkeypatch.setattr(sqlite_store, "free_nbytes", lambda _: 0)

    details = [rejection(store) for _ in range(2)]

    assert all("the free space of the file system" in detail for detail in details)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "free disk space" in caplog.text
    store.close(float("inf"))


def test_exhausted_disk_budget_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = SessionStore(MEMORY, disk=SqliteStore(tmp_path, 200_000), backend=BACKEND)
    monkeypatch.setattr(sqlite_store, "free_nbytes", lambda _: 1 << 30)

    detail = rejection(store)

    assert "allowed in total by the disk budget" in detail
    assert not caplog.records
    store.close(float("inf"))


def test_readiness_reports_available_disk_space(tmp_path: Path) -> None:
    with service(tmp_path, "--durability", "ack", "--disk-budget", "16MiB") as caller:
        before = caller.get("/readyz").body
        caller.append("a", K, V)
        after = caller.get("/readyz").body

    assert before["disk_budget_nbytes"] == 16 << 20
    assert 0 < after["disk_room_nbytes"] < before["disk_room_nbytes"] <= 16 << 20


@pytest.mark.parametrize("again", [False, True], ids=["gone", "another"])
def test_service_without_its_directory_is_not_ready(tmp_path: Path, again: bool) -> None:
    directory = tmp_path / "data"
    with service(directory, "--durability", "ack") as caller:
        assert caller.get("/readyz").status == 200
        assert caller.append("a", K, V).status == 201
        shutil.rmtree(directory)
        if again:
            directory.mkdir()
            (directory / sqlite_store.FILE).touch()

        caller.get("/readyz").problem(503, "storage-unavailable")
        caller.append("a", K, V).problem(507, "insufficient-storage")
        assert holds(caller, "a")
