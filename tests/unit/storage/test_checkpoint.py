"""The store at the end of the process: what goes to disk when not all of it has room there."""

from pathlib import Path

import pytest

from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.storage.disk.sqlite_file import page_cost
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.disk.sqlite_transaction import SESSION_NBYTES
from hadakv_service.storage.session_store import Key, SessionStore
from support.sized_sessions import ANN, BACKEND, BOB, CID, TOKEN, append


def disk_cost(tokens: int) -> int:
    """What a session takes on disk."""
    pages = [min(PAGE_TOKENS, tokens - start) for start in range(0, tokens, PAGE_TOKENS)]
    return sum(page_cost(page * TOKEN) for page in pages) + SESSION_NBYTES


def opened(directory: Path, budget: int) -> SessionStore:
    """A store on a disk, where whoever appends may outlive it."""
    return SessionStore(1 << 30, disk=SqliteStore(directory, budget), backend=BACKEND)


def spill(store: SessionStore, key: Key, tokens: int) -> None:
    append(store, key, tokens, durability="spill")


@pytest.mark.parametrize("further", [1, 256])
def test_who_has_to_make_room_for_others_at_the_end_is_gone_as_a_whole(tmp_path: Path, further: int) -> None:
    budget = disk_cost(600) + disk_cost(further)
    store = opened(tmp_path, budget)
    spill(store, ANN, 300)
    assert store.close(float("inf")) == 0
    store = opened(tmp_path, budget)
    spill(store, ANN, further)
    spill(store, BOB, 600)

    left = store.close(float("inf"))
    store = opened(tmp_path, budget)

    assert left == 0
    assert store.find(ANN) is None
    bob = store.find(BOB)
    assert bob is not None
    assert bob.session.read(0, 1, 0, 600, BACKEND).tokens == 600
    assert len(store) == 1
    assert store.disk.used == disk_cost(600)
    store.close(float("inf"))


def test_at_the_end_those_used_last_are_kept(tmp_path: Path) -> None:
    budget = 2 * disk_cost(300)
    store = opened(tmp_path, budget)
    for key in (ANN, BOB, CID):
        spill(store, key, 300)
    store.touch(ANN)

    left = store.close(float("inf"))
    store = opened(tmp_path, budget)

    assert left == 1
    assert [key for key in (ANN, BOB, CID) if store.find(key)] == [ANN, CID]
    store.close(float("inf"))
