"""The store by itself: the ledger, the budget, who makes room for whom, and who expires when."""

import gc
import tracemalloc
from collections.abc import Callable

import pytest

from hadakv_service.errors import InsufficientStorage, SessionNotFound
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.storage.session_store import Key, SessionRecord, SessionStore
from support.sized_sessions import ANN, BOB, CID, DAN, EMPTY, TOKEN, Clock, append, cost, create, opened

# Getting, listing, removing


def test_a_session_is_found_by_owner_and_id() -> None:
    store = SessionStore(1000)

    entry = store.commit(("tenant", "id"), opened())

    assert store.get(("tenant", "id")) is entry
    assert store.find(("other", "id")) is None
    with pytest.raises(SessionNotFound):
        store.get(("tenant", "other"))


def test_a_removed_session_gives_its_bytes_back() -> None:
    store = SessionStore(100_000)
    append(store, ANN, 30)
    append(store, BOB, 20)

    store.delete(ANN)
    store.delete(ANN)

    assert store.memory.used == cost(20)
    assert store.memory.available == 100_000 - cost(20)
    assert len(store) == 1


def test_a_page_lists_one_owners_sessions_in_order_of_id() -> None:
    store = SessionStore(100_000)
    for id_ in ("b2", "a1", "b1", "b3"):
        store.commit(("mine", id_), opened())
    store.commit(("theirs", "b0"), opened())

    first, after = store.list_sessions("mine", "b", "", 2)
    rest, end = store.list_sessions("mine", "b", after or "", 2)

    assert ([id_ for id_, _ in first], after) == (["b1", "b2"], "b2")
    assert ([id_ for id_, _ in rest], end) == (["b3"], None)


# Room


def test_the_least_recently_used_make_room_and_no_more_of_them_than_needed() -> None:
    clock = Clock()
    store = SessionStore(3 * cost(30) + 6 * TOKEN, clock)
    for key in (ANN, BOB, CID):
        append(store, key, 30)
    store.touch(ANN)

    append(store, DAN, 35)

    assert [store.find(key) is not None for key in (ANN, BOB, CID, DAN)] == [True, False, True, True]
    assert store.evictions == 1
    assert store.memory.used == 2 * cost(30) + cost(35)


def test_nothing_is_evicted_where_that_would_not_help() -> None:
    budget = cost(30) + cost(100)
    store = SessionStore(budget)
    append(store, ANN, 30)
    append(store, BOB, 40)
    needed = budget - cost(40) + 1

    with pytest.raises(InsufficientStorage) as refused:
        store.reserve(needed, {BOB})

    assert refused.value.fields == {"needed": needed, "budget": budget}
    assert (len(store), store.evictions, store.memory.used) == (2, 0, cost(30) + cost(40))


def test_a_session_without_tokens_is_evicted_like_any_other() -> None:
    store = SessionStore(EMPTY + cost(90) + cost(50) - 1)
    create(store, ANN)
    append(store, BOB, 90)

    append(store, CID, 50)

    assert [store.find(key) is not None for key in (ANN, BOB, CID)] == [False, True, True]


def test_sessions_without_tokens_stay_within_the_budget_however_many_there_are() -> None:
    store = SessionStore(100 * EMPTY)

    for i in range(1000):
        create(store, ("", f"{i:03}"))

    assert [id_ for id_, _ in store.list_sessions("", "", "", 1000)[0]] == [f"{i:03}" for i in range(900, 1000)]
    assert (store.evictions, store.memory.used) == (900, store.memory.limit)


def test_a_session_that_is_more_than_the_budget_is_not_made() -> None:
    store = SessionStore(EMPTY - 1)

    with pytest.raises(InsufficientStorage):
        create(store, ANN)

    assert (len(store), store.memory.used) == (0, 0)


def test_every_small_append_counts_its_page_until_they_become_one() -> None:
    store = SessionStore(1 << 30)
    append(store, ANN, 1)

    for _ in range(PAGE_TOKENS - 2):
        append(store, ANN, 1)
    before = store.memory.used
    append(store, ANN, 1)

    assert before == cost(PAGE_TOKENS - 1, PAGE_TOKENS - 1)
    assert store.memory.used == cost(PAGE_TOKENS)


@pytest.mark.parametrize(
    "make",
    [
        create,
        lambda store, key: create(store, key, ttl_seconds=1e6),
        lambda store, key: append(store, key, 1),
        lambda store, key: [append(store, key, 1) for _ in range(12)],
    ],
    ids=["no token", "with a time to live", "one token", "tokens one by one"],
)
def test_no_less_is_counted_than_python_takes_and_not_much_more(make: Callable[[SessionStore, Key], object]) -> None:
    store = SessionStore(1 << 30)
    make(store, ANN)

    gc.collect()
    before = store.memory.used
    tracemalloc.start()
    for i in range(500):
        make(store, ("", f"{i:0128}"))
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert taken <= store.memory.used - before <= 3 * taken


def test_a_window_gives_back_what_an_append_pushed_out() -> None:
    store = SessionStore(100_000)
    store.commit(ANN, opened(window=1))
    for _ in range(4):
        append(store, ANN, 300)

    assert store.memory.used == store.get(ANN).cost < cost(600, 3)


# Expiry


def test_a_session_expires_when_it_was_not_used_for_its_ttl() -> None:
    clock = Clock()
    store = SessionStore(100_000, clock)
    entry = store.commit(ANN, opened(ttl_seconds=10))

    clock.now += 9.5
    before = store.find(ANN)
    clock.now += 0.5

    assert entry.expires == clock.now
    assert before is entry
    assert store.find(ANN) is None
    assert store.list_sessions("", "", "", 10) == ([], None)


@pytest.mark.parametrize("use", [lambda store: store.touch(ANN), lambda store: append(store, ANN, 1)])
def test_use_puts_expiry_off(use: Callable[[SessionStore], None]) -> None:
    clock = Clock()
    store = SessionStore(100_000, clock)
    store.commit(ANN, opened(ttl_seconds=10))

    clock.now += 9
    use(store)
    clock.now += 9

    entry = store.get(ANN)
    assert (entry.last_used, entry.expires) == (clock.now - 9, clock.now + 1)
    assert entry.created == clock.now - 18


def test_a_session_without_a_ttl_lives_on() -> None:
    clock = Clock()
    store = SessionStore(100_000, clock)
    store.commit(ANN, opened())

    clock.now += 1e9

    assert store.get(ANN).expires is None


def test_a_sweep_frees_the_bytes_of_the_expired() -> None:
    clock = Clock()
    store = SessionStore(100_000, clock)
    append(store, ANN, 10, ttl_seconds=5)
    append(store, BOB, 20)

    clock.now += 5
    store.expire()

    assert (len(store), store.memory.used) == (1, cost(20))


def test_a_sweep_finds_the_expired_whatever_their_times_and_uses() -> None:
    clock = Clock()
    store = SessionStore(1 << 30, clock)
    for i in range(40):
        append(store, ("", f"{i:02}"), 1, ttl_seconds=(None, 5, 9, 20)[i % 4])
        clock.now += 0.125
    for i in range(0, 40, 3):
        store.touch(("", f"{i:02}"))

    clock.now += 5
    store.expire()

    listed = [id_ for id_, _ in store.list_sessions("", "", "", 100)[0]]
    assert len(store) == len(listed) < 40
    assert store.memory.used == len(listed) * cost(1)


def test_a_sweep_looks_only_at_whom_it_may_find(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at all of thousands of sessions, each with a time to live of its own."""
    clock = Clock()
    store = SessionStore(1 << 30, clock)
    for i in range(2000):
        create(store, ("", f"{i:04}"), ttl_seconds=10 + i)
    store.touch(("", "0000"))
    asked: list[SessionRecord] = []
    expires = SessionRecord.expires.fget
    monkeypatch.setattr(SessionRecord, "expires", property(lambda entry: (asked.append(entry), expires(entry))[1]))

    store.expire()
    clock.now += 10.5
    store.expire()

    assert len(store) == 1999
    assert len(asked) < 10


def test_sessions_that_come_and_go_leave_nothing_to_look_at() -> None:
    store = SessionStore(1 << 30, Clock())
    tracemalloc.start()
    for i in range(20_000):
        if i == 2000:
            before, _ = tracemalloc.get_traced_memory()
        create(store, ("", f"{i:05}"), ttl_seconds=1e9)
        store.delete(("", f"{i:05}"))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert after - before < 100_000


def test_an_expired_session_begins_anew() -> None:
    clock = Clock()
    store = SessionStore(100_000, clock)
    append(store, ANN, 10, ttl_seconds=5)

    clock.now += 6
    append(store, ANN, 3)

    entry = store.get(ANN)
    assert (entry.created, entry.expires) == (clock.now, None)
    assert store.memory.used == entry.cost == cost(3)


def test_an_expired_session_makes_room_for_the_one_that_takes_its_name() -> None:
    clock = Clock()
    store = SessionStore(cost(100), clock)
    append(store, ANN, 90, ttl_seconds=0.5)

    clock.now += 0.75
    append(store, ANN, 90)

    assert store.memory.used == cost(90)


def test_the_expired_go_before_anybody_is_evicted() -> None:
    clock = Clock()
    store = SessionStore(2 * cost(50), clock)
    append(store, ANN, 40)
    append(store, BOB, 40, ttl_seconds=0.5)

    clock.now += 0.75
    append(store, CID, 50)

    assert store.find(ANN) is not None
    assert store.evictions == 0
