"""EvictionLog: each session deleted to make space is named in the log, in few lines."""

import logging
from pathlib import Path

import pytest

from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.lifetime.eviction_log import EvictionLog
from hadakv_service.storage.session_store import SessionStore
from support.inputs.sized_sessions import ANN, BACKEND, BOB, CID, append, cost


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.endswith("eviction_log")]


def test_sessions_deleted_for_memory_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    store = SessionStore(cost(30))
    append(store, ANN, 30)
    append(store, BOB, 30)

    store.group_commit()

    assert messages(caplog) == ["deleted 1 sessions to make space in memory, see --memory-budget: 'ann'"]
    assert caplog.records[0].levelno == logging.WARNING


def test_sessions_deleted_for_the_disk_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)
    append(store, ANN, 300, durability="spill")
    append(store, BOB, 300, durability="spill")
    store.close(float("inf"))
    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, 1), backend=BACKEND)
    store.disk.budget = store.disk.used  # type: ignore[misc]  # no space for more

    append(store, CID, 1, durability="ack")
    store.group_commit()

    assert messages(caplog) == ["deleted 1 sessions to make space on disk, see --disk-budget: 'ann'"]
    store.disk.close()


def test_further_deletions_wait_for_the_next_line(caplog: pytest.LogCaptureFixture) -> None:
    evicted = EvictionLog()
    for key in (ANN, BOB, CID):
        evicted.add(key, "disk")
        evicted.report()
    waiting = messages(caplog)

    evicted.report(now=True)
    evicted.report(now=True)

    assert [len(waiting), evicted.count] == [1, 3]
    assert messages(caplog)[1:] == ["deleted 2 sessions to make space on disk, see --disk-budget: 'bob', 'cid'"]
