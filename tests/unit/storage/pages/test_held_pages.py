"""Pages that responses hold: their bytes count exactly while the memory budget does not count them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hadakv_service.sessions.page import Page
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.memory_budget import evicted_nbytes, load_nbytes
from hadakv_service.storage.pages.held_pages import HOLD_PAGES, PageHold
from hadakv_service.storage.session_store import Key, SessionStore
from support.inputs.sized_sessions import ANN, BACKEND, BOB, TOKEN, append, cost

TOKENS = 200


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    """Return a store with a disk, and memory for one session and a bit."""
    store = SessionStore(cost(TOKENS) + cost(TOKENS) // 2, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)
    yield store
    store.close(float("inf"))


def pages_of(store: SessionStore, key: Key) -> list[Page]:
    return list(store.get(key).session.all_pages())


def hold_all(store: SessionStore, pages: list[Page]) -> PageHold:
    hold = PageHold(store.pool.held, pages)
    while hold.extend():
        pass
    return hold


def test_resident_pages_of_a_session_count_once(store: SessionStore) -> None:
    append(store, ANN, TOKENS, durability="spill")
    stored = store.memory.stored

    hold = hold_all(store, pages_of(store, ANN))

    assert (store.pool.held.uncounted, store.memory.stored) == (0, stored)
    hold.release()
    assert not store.pool.held


def test_evicted_pages_count_until_the_last_response(store: SessionStore) -> None:
    append(store, ANN, TOKENS, durability="spill")
    pages = pages_of(store, ANN)
    first, second = hold_all(store, pages), hold_all(store, pages)
    streams = pages[0].load()

    append(store, BOB, TOKENS, durability="spill")

    assert not pages[0].is_resident
    assert store.pool.held.uncounted == TOKENS * TOKEN
    # A held page is not read again.
    assert pages[0].load() == streams
    assert store.pool.restores == 0
    first.release()
    first.release()
    assert store.pool.held.uncounted == TOKENS * TOKEN
    second.release()
    assert store.pool.held.uncounted == 0


def test_pages_of_a_deleted_session_count(store: SessionStore) -> None:
    append(store, ANN, TOKENS, durability="memory")
    hold = hold_all(store, pages_of(store, ANN))

    store.delete(ANN)

    assert (store.memory.stored, store.pool.held.uncounted) == (0, TOKENS * TOKEN)
    hold.release()
    assert store.pool.held.uncounted == 0


def test_page_loaded_for_its_session_again_counts_there(store: SessionStore) -> None:
    append(store, ANN, TOKENS, durability="spill")
    (page,) = pages_of(store, ANN)
    hold = hold_all(store, [page])
    append(store, BOB, TOKENS, durability="spill")
    assert store.pool.held.uncounted == page.nbytes
    store.get(ANN)

    store.delete(BOB)
    page = pages_of(store, ANN)[0]
    page.load()

    assert page.is_resident
    assert store.pool.held.uncounted == 0
    assert store.memory.stored == evicted_nbytes(store.get(ANN).session) + load_nbytes(page)
    store.delete(ANN)
    assert store.pool.held.uncounted == page.nbytes
    hold.release()
    assert store.pool.held.uncounted == 0


def test_pages_are_held_some_at_a_time(store: SessionStore) -> None:
    append(store, ANN, TOKENS, durability="spill")
    pages = pages_of(store, ANN) * (HOLD_PAGES + 1)
    hold = PageHold(store.pool.held, pages)

    assert hold.extend()
    assert not hold.extend()
    hold.release()

    assert not store.pool.held


def test_watched_pages_may_leave_memory_and_count_when_deleted(store: SessionStore) -> None:
    append(store, ANN, TOKENS, durability="spill")
    (page,) = pages_of(store, ANN)
    watching = PageHold(store.pool.held, [page], watch=True)
    watching.extend()

    append(store, BOB, TOKENS, durability="spill")
    assert (page.is_resident, store.pool.held.uncounted) == (False, 0)
    store.delete(BOB)
    assert pages_of(store, ANN) == [page]
    page.load()
    holding = hold_all(store, [page])
    assert (page.is_resident, store.pool.held.uncounted) == (True, 0)
    store.delete(ANN)

    assert store.pool.held.uncounted == page.nbytes
    holding.release()
    assert store.pool.held.uncounted == page.nbytes
    watching.release()
    assert store.pool.held.uncounted == 0
    assert not store.pool.held
