"""Checkpoint at shutdown: what is written to disk when not all of it fits."""

from pathlib import Path

import pytest

from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.storage.disk.sqlite_file import page_cost
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.disk.sqlite_transaction import SESSION_NBYTES
from hadakv_service.storage.session_store import Key, SessionStore
from support.inputs.sized_sessions import ANN, BACKEND, BOB, CID, TOKEN, append


def disk_cost(tokens: int) -> int:
    """Return the bytes counted for a session on disk."""
    pages = [min(PAGE_TOKENS, tokens - start) for start in range(0, tokens, PAGE_TOKENS)]
    return sum(page_cost(page * TOKEN) for page in pages) + SESSION_NBYTES


def open_store(directory: Path, budget: int) -> SessionStore:
    """Open a store with a disk."""
    return SessionStore(1 << 30, disk=SqliteStore(directory, budget), backend=BACKEND)


def spill(store: SessionStore, key: Key, tokens: int) -> None:
    append(store, key, tokens, durability="spill")


@pytest.mark.parametrize("further", [1, 256])
def test_session_evicted_by_checkpoint_leaves_nothing(tmp_path: Path, further: int) -> None:
    budget = disk_cost(600) + disk_cost(further)
    store = open_store(tmp_path, budget)
    spill(store, ANN, 300)
    assert store.close(float("inf")) == 0
    store = open_store(tmp_path, budget)
    spill(store, ANN, further)
    spill(store, BOB, 600)

    unwritten = store.close(float("inf"))
    store = open_store(tmp_path, budget)

    assert unwritten == 0
    assert store.find(ANN) is None
    bob = store.find(BOB)
    assert bob is not None
    assert bob.session.read(0, 1, 0, 600, BACKEND).tokens == 600
    assert len(store) == 1
    assert store.disk.used == disk_cost(600)
    store.close(float("inf"))


def test_checkpoint_keeps_most_recently_used_sessions(tmp_path: Path) -> None:
    budget = 2 * disk_cost(300)
    store = open_store(tmp_path, budget)
    for key in (ANN, BOB, CID):
        spill(store, key, 300)
    store.touch(ANN)

    unwritten = store.close(float("inf"))
    store = open_store(tmp_path, budget)

    assert unwritten == 1
    assert [key for key in (ANN, BOB, CID) if store.find(key)] == [ANN, CID]
    store.close(float("inf"))
