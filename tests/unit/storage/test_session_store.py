"""SessionStore in memory: counted bytes, eviction, expiry."""

import gc
import tracemalloc
from collections.abc import Callable

import pytest

from hadakv_service.errors import InsufficientStorage, SessionNotFound
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.storage.session_store import Key, SessionRecord, SessionStore
from support.inputs.sized_sessions import ANN, BOB, CID, DAN, EMPTY, TOKEN, Clock, append, commit, cost, create, opened

# Find, list, delete


def test_session_is_found_by_owner_and_id() -> None:
    store = SessionStore(1000)

    record = commit(store, ("tenant", "id"), opened())

    assert store.get(("tenant", "id")) is record
    assert store.find(("other", "id")) is None
    with pytest.raises(SessionNotFound):
        store.get(("tenant", "other"))


def test_delete_frees_the_bytes() -> None:
    store = SessionStore(100_000)
    append(store, ANN, 30)
    append(store, BOB, 20)

    store.delete(ANN)
    store.delete(ANN)

    assert store.memory.used == cost(20)
    assert store.memory.available == 100_000 - cost(20)
    assert len(store) == 1


def test_list_has_sessions_of_one_owner_in_order_of_id() -> None:
    store = SessionStore(100_000)
    for id_ in ("b2", "a1", "b1", "b3"):
        commit(store, ("mine", id_), opened())
    commit(store, ("theirs", "b0"), opened())

    first, after = store.list_sessions("mine", "b", "", 2)
    rest, end = store.list_sessions("mine", "b", after or "", 2)

    assert ([id_ for id_, _ in first], after) == (["b1", "b2"], "b2")
    assert ([id_ for id_, _ in rest], end) == (["b3"], None)


# Eviction


def test_eviction_deletes_no_more_lru_sessions_than_needed() -> None:
    clock = Clock()
    store = SessionStore(3 * cost(30) + 6 * TOKEN, clock)
    for key in (ANN, BOB, CID):
        append(store, key, 30)
    store.touch(ANN)

    append(store, DAN, 35)

    assert [store.find(key) is not None for key in (ANN, BOB, CID, DAN)] == [True, False, True, True]
    assert store.evictions == 1
    assert store.memory.used == 2 * cost(30) + cost(35)


def test_nothing_is_evicted_if_that_would_not_help() -> None:
    budget = cost(30) + cost(100)
    store = SessionStore(budget)
    append(store, ANN, 30)
    append(store, BOB, 40)
    needed = budget - cost(40) + 1

    with pytest.raises(InsufficientStorage) as rejected:
        store.reserve(BOB, store.get(BOB).session, {BOB}, nbytes=needed)

    assert rejected.value.fields == {"needed": needed, "budget": budget}
    assert (len(store), store.evictions, store.memory.used) == (2, 0, cost(30) + cost(40))


def test_session_without_tokens_can_be_evicted() -> None:
    store = SessionStore(EMPTY + cost(90) + cost(50) - 1)
    create(store, ANN)
    append(store, BOB, 90)

    append(store, CID, 50)

    assert [store.find(key) is not None for key in (ANN, BOB, CID)] == [False, True, True]


def test_many_sessions_without_tokens_stay_within_budget() -> None:
    store = SessionStore(100 * EMPTY)

    for i in range(1000):
        create(store, ("", f"{i:03}"))

    assert [id_ for id_, _ in store.list_sessions("", "", "", 1000)[0]] == [f"{i:03}" for i in range(900, 1000)]
    assert (store.evictions, store.memory.used) == (900, store.memory.limit)


def test_session_larger_than_budget_is_rejected() -> None:
    store = SessionStore(EMPTY - 1)

    with pytest.raises(InsufficientStorage):
        create(store, ANN)

    assert (len(store), store.memory.used) == (0, 0)


def test_small_pages_are_counted_until_they_are_merged() -> None:
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
    ids=["no token", "with a TTL", "one token", "tokens one by one"],
)
def test_counted_bytes_cover_what_python_allocates(make: Callable[[SessionStore, Key], object]) -> None:
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


def test_tokens_outside_the_window_are_freed() -> None:
    store = SessionStore(100_000)
    commit(store, ANN, opened(window=1))
    for _ in range(4):
        append(store, ANN, 300)

    assert store.memory.used == store.get(ANN).cost < cost(600, 3)


# Expiry


def test_session_expires_when_unused_for_its_ttl() -> None:
    clock = Clock()
    store = SessionStore(100_000, clock)
    record = commit(store, ANN, opened(ttl_seconds=10))

    clock.now += 9.5
    before = store.find(ANN)
    clock.now += 0.5

    assert record.expires == clock.now
    assert before is record
    assert store.find(ANN) is None
    assert store.list_sessions("", "", "", 10) == ([], None)


@pytest.mark.parametrize("use", [lambda store: store.touch(ANN), lambda store: append(store, ANN, 1)])
def test_use_resets_the_ttl(use: Callable[[SessionStore], None]) -> None:
    clock = Clock()
    store = SessionStore(100_000, clock)
    commit(store, ANN, opened(ttl_seconds=10))

    clock.now += 9
    use(store)
    clock.now += 9

    record = store.get(ANN)
    assert (record.last_used, record.expires) == (clock.now - 9, clock.now + 1)
    assert record.created == clock.now - 18


def test_session_without_ttl_does_not_expire() -> None:
    clock = Clock()
    store = SessionStore(100_000, clock)
    commit(store, ANN, opened())

    clock.now += 1e9

    assert store.get(ANN).expires is None


def test_expire_frees_the_bytes() -> None:
    clock = Clock()
    store = SessionStore(100_000, clock)
    append(store, ANN, 10, ttl_seconds=5)
    append(store, BOB, 20)

    clock.now += 5
    store.expire()

    assert (len(store), store.memory.used) == (1, cost(20))


def test_expire_finds_sessions_with_different_ttls_and_uses() -> None:
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


def test_expire_checks_only_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of thousands of sessions, each with a different TTL."""
    clock = Clock()
    store = SessionStore(1 << 30, clock)
    for i in range(2000):
        create(store, ("", f"{i:04}"), ttl_seconds=10 + i)
    store.touch(("", "0000"))
    checked: list[SessionRecord] = []
    expires = SessionRecord.expires.fget
    monkeypatch.setattr(SessionRecord, "expires", property(lambda record: (checked.append(record), expires(record))[1]))

    store.expire()
    clock.now += 10.5
    store.expire()

    assert len(store) == 1999
    assert len(checked) < 10


def test_deleted_sessions_leave_no_expiry_queue() -> None:
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


def test_append_to_expired_session_creates_a_new_one() -> None:
    clock = Clock()
    store = SessionStore(100_000, clock)
    append(store, ANN, 10, ttl_seconds=5)

    clock.now += 6
    append(store, ANN, 3)

    record = store.get(ANN)
    assert (record.created, record.expires) == (clock.now, None)
    assert store.memory.used == record.cost == cost(3)


def test_expired_session_frees_memory_for_same_id() -> None:
    clock = Clock()
    store = SessionStore(cost(100), clock)
    append(store, ANN, 90, ttl_seconds=0.5)

    clock.now += 0.75
    append(store, ANN, 90)

    assert store.memory.used == cost(90)


def test_expired_sessions_are_deleted_before_any_eviction() -> None:
    clock = Clock()
    store = SessionStore(2 * cost(50), clock)
    append(store, ANN, 40)
    append(store, BOB, 40, ttl_seconds=0.5)

    clock.now += 0.75
    append(store, CID, 50)

    assert store.find(ANN) is not None
    assert store.evictions == 0
