"""The store by itself: the ledger, the budget, who makes room for whom, and who expires when."""

import gc
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hadakv_kernels import Codec, Stream
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.errors import InsufficientStorage, SessionNotFound
from hadakv_service.pages import PAGE_TOKENS, Page
from hadakv_service.session import Session
from hadakv_service.store import PAGE_NBYTES, RUN_NBYTES, SESSION_NBYTES, Key, Store

BACKEND = CpuBackend(1)
SPEC = Codec(bits=2).at(64)
TOKEN = 2 * SPEC.nbytes


def cost(tokens: int, pages: int = 1, runs: int = 1) -> int:
    """What a session is counted as."""
    return SESSION_NBYTES + runs * RUN_NBYTES + pages * PAGE_NBYTES + tokens * TOKEN


EMPTY = cost(0, 0, 0)


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def grown(session: Session, tokens: int) -> Session:
    """The session with so many tokens more, each of TOKEN bytes."""
    stream = Stream(np.ones((1, 1, tokens, 64), np.float16), SPEC)
    return session.append(0, Page(*BACKEND.encode([stream, stream])), BACKEND)


def opened(ttl_seconds: float | None = None, window: int | None = None) -> Session:
    codec = Codec(bits=2)
    return Session((codec, codec), kv_heads=1, head_dim=64, ttl_seconds=ttl_seconds, window=window)


def append(store: Store, key: Key, tokens: int, ttl_seconds: float | None = None) -> None:
    """What an append does to the store."""
    entry = store.find(key)
    session = (entry.session if entry else opened(ttl_seconds)).opened(0, 1)
    pages = session.new_pages(0, 1, tokens)
    reserved = store.reserve_growth(key, session, {key}, nbytes=tokens * TOKEN, pages=pages)
    store.put(key, grown(session, tokens), reserved)


def create(store: Store, key: Key, ttl_seconds: float | None = None) -> None:
    """What making a session does to the store."""
    session = opened(ttl_seconds)
    store.put(key, session, store.reserve_growth(key, session, {key}))


ANN, BOB, CID, DAN = (("", name) for name in ("ann", "bob", "cid", "dan"))


# Getting, listing, removing


def test_a_session_is_found_by_owner_and_id() -> None:
    store = Store(1000)

    entry = store.put(("tenant", "id"), opened())

    assert store.get(("tenant", "id")) is entry
    assert store.find(("other", "id")) is None
    with pytest.raises(SessionNotFound):
        store.get(("tenant", "other"))


def test_a_removed_session_gives_its_bytes_back() -> None:
    store = Store(100_000)
    append(store, ANN, 30)
    append(store, BOB, 20)

    store.remove(ANN)
    store.remove(ANN)

    assert store.ledger.used == cost(20)
    assert store.ledger.free == 100_000 - cost(20)
    assert len(store) == 1


def test_a_page_lists_one_owners_sessions_in_order_of_id() -> None:
    store = Store(100_000)
    for id_ in ("b2", "a1", "b1", "b3"):
        store.put(("mine", id_), opened())
    store.put(("theirs", "b0"), opened())

    first, after = store.page("mine", "b", "", 2)
    rest, end = store.page("mine", "b", after or "", 2)

    assert ([id_ for id_, _ in first], after) == (["b1", "b2"], "b2")
    assert ([id_ for id_, _ in rest], end) == (["b3"], None)


# Room


def test_the_least_recently_used_make_room_and_no_more_of_them_than_needed() -> None:
    clock = Clock()
    store = Store(3 * cost(30) + 6 * TOKEN, clock)
    for key in (ANN, BOB, CID):
        append(store, key, 30)
    store.touch(ANN)

    append(store, DAN, 35)

    assert [store.find(key) is not None for key in (ANN, BOB, CID, DAN)] == [True, False, True, True]
    assert store.evictions == 1
    assert store.ledger.used == 2 * cost(30) + cost(35)


def test_nothing_is_evicted_where_that_would_not_help() -> None:
    budget = cost(30) + cost(100)
    store = Store(budget)
    append(store, ANN, 30)
    append(store, BOB, 40)
    needed = budget - cost(40) + 1

    with pytest.raises(InsufficientStorage) as refused:
        store.reserve(needed, {BOB})

    assert refused.value.fields == {"needed": needed, "budget": budget}
    assert (len(store), store.evictions, store.ledger.used) == (2, 0, cost(30) + cost(40))


def test_a_session_without_tokens_is_evicted_like_any_other() -> None:
    store = Store(EMPTY + cost(90) + cost(50) - 1)
    create(store, ANN)
    append(store, BOB, 90)

    append(store, CID, 50)

    assert [store.find(key) is not None for key in (ANN, BOB, CID)] == [False, True, True]


def test_sessions_without_tokens_stay_within_the_budget_however_many_there_are() -> None:
    store = Store(100 * EMPTY)

    for i in range(1000):
        create(store, ("", f"{i:03}"))

    assert [id_ for id_, _ in store.page("", "", "", 1000)[0]] == [f"{i:03}" for i in range(900, 1000)]
    assert (store.evictions, store.ledger.used) == (900, store.ledger.budget)


def test_a_session_that_is_more_than_the_budget_is_not_made() -> None:
    store = Store(EMPTY - 1)

    with pytest.raises(InsufficientStorage):
        create(store, ANN)

    assert (len(store), store.ledger.used) == (0, 0)


def test_every_small_append_counts_its_page_until_they_become_one() -> None:
    store = Store(1 << 30)
    append(store, ANN, 1)

    for _ in range(PAGE_TOKENS - 2):
        append(store, ANN, 1)
    before = store.ledger.used
    append(store, ANN, 1)

    assert before == cost(PAGE_TOKENS - 1, PAGE_TOKENS - 1)
    assert store.ledger.used == cost(PAGE_TOKENS)


@pytest.mark.parametrize(
    "make",
    [
        create,
        lambda store, key: create(store, key, ttl_seconds=1e6),
        lambda store, key: append(store, key, 1),
        lambda store, key: [append(store, key, 1) for _ in range(50)],
    ],
    ids=["no token", "with a time to live", "one token", "tokens one by one"],
)
def test_no_less_is_counted_than_python_takes_and_not_much_more(make: Callable[[Store, Key], object]) -> None:
    store = Store(1 << 30)
    make(store, ANN)

    gc.collect()
    before = store.ledger.used
    tracemalloc.start()
    for i in range(500):
        make(store, ("", f"{i:0128}"))
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert taken <= store.ledger.used - before <= 3 * taken


def test_a_window_gives_back_what_an_append_pushed_out() -> None:
    store = Store(100_000)
    store.put(ANN, opened(window=1))
    for _ in range(4):
        append(store, ANN, 300)

    assert store.ledger.used == store.get(ANN).cost < cost(600, 3)


# Expiry


def test_a_session_expires_when_it_was_not_used_for_its_ttl() -> None:
    clock = Clock()
    store = Store(100_000, clock)
    entry = store.put(ANN, opened(ttl_seconds=10))

    clock.now += 9.5
    before = store.find(ANN)
    clock.now += 0.5

    assert entry.expires == clock.now
    assert before is entry
    assert store.find(ANN) is None
    assert store.page("", "", "", 10) == ([], None)


@pytest.mark.parametrize("use", [lambda store: store.touch(ANN), lambda store: append(store, ANN, 1)])
def test_use_puts_expiry_off(use: Callable[[Store], None]) -> None:
    clock = Clock()
    store = Store(100_000, clock)
    store.put(ANN, opened(ttl_seconds=10))

    clock.now += 9
    use(store)
    clock.now += 9

    entry = store.get(ANN)
    assert (entry.last_used, entry.expires) == (clock.now - 9, clock.now + 1)
    assert entry.created == clock.now - 18


def test_a_session_without_a_ttl_lives_on() -> None:
    clock = Clock()
    store = Store(100_000, clock)
    store.put(ANN, opened())

    clock.now += 1e9

    assert store.get(ANN).expires is None


def test_a_sweep_frees_the_bytes_of_the_expired() -> None:
    clock = Clock()
    store = Store(100_000, clock)
    append(store, ANN, 10, ttl_seconds=5)
    append(store, BOB, 20)

    clock.now += 5
    store.sweep()

    assert (len(store), store.ledger.used) == (1, cost(20))


def test_a_sweep_finds_the_expired_whatever_their_times_and_uses() -> None:
    clock = Clock()
    store = Store(1 << 30, clock)
    for i in range(40):
        append(store, ("", f"{i:02}"), 1, ttl_seconds=(None, 5, 9, 20)[i % 4])
        clock.now += 0.125
    for i in range(0, 40, 3):
        store.touch(("", f"{i:02}"))

    clock.now += 5
    store.sweep()

    listed = [id_ for id_, _ in store.page("", "", "", 100)[0]]
    assert len(store) == len(listed) < 40
    assert store.ledger.used == len(listed) * cost(1)


def test_an_expired_session_begins_anew() -> None:
    clock = Clock()
    store = Store(100_000, clock)
    append(store, ANN, 10, ttl_seconds=5)

    clock.now += 6
    append(store, ANN, 3)

    entry = store.get(ANN)
    assert (entry.created, entry.expires) == (clock.now, None)
    assert store.ledger.used == entry.cost == cost(3)


def test_an_expired_session_makes_room_for_the_one_that_takes_its_name() -> None:
    clock = Clock()
    store = Store(cost(100), clock)
    append(store, ANN, 90, ttl_seconds=0.5)

    clock.now += 0.75
    append(store, ANN, 90)

    assert store.ledger.used == cost(90)


def test_the_expired_go_before_anybody_is_evicted() -> None:
    clock = Clock()
    store = Store(2 * cost(50), clock)
    append(store, ANN, 40)
    append(store, BOB, 40, ttl_seconds=0.5)

    clock.now += 0.75
    append(store, CID, 50)

    assert store.find(ANN) is not None
    assert store.evictions == 0


# Everything at once

NAMES = (ANN, BOB, ("tenant", "ann"))
KEYS = st.sampled_from(NAMES)
TTLS = st.sampled_from([None, 0.5, 0.5, 3.0])
# Less than a page of tokens for one session, or three small sessions.
BUDGET = cost(200, 2)


class StoreMachine(RuleBasedStateMachine):
    """The store against a plain account of who has what, least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = Store(BUDGET, self.clock)
        # What each append brought.
        self.tokens: dict[Key, list[int]] = {}
        self.expires: dict[Key, float | None] = {}
        self.ttl: dict[Key, float | None] = {}
        self.reserved: list[int] = []

    def _use(self, key: Key) -> None:
        ttl = self.ttl[key]
        self.expires[key] = None if ttl is None else self.clock.now + ttl
        self.tokens[key] = self.tokens.pop(key)

    def _forget_expired(self) -> None:
        for key, moment in list(self.expires.items()):
            if moment is not None and moment <= self.clock.now:
                self._forget(key)

    def _forget(self, key: Key) -> None:
        for account in (self.tokens, self.expires, self.ttl):
            del account[key]

    def _reserve(self, key: Key, nbytes: int) -> bool:
        """Reserve through the store; whether there was room. Nobody is evicted for what is not stored."""
        kept = self._cost(key) + sum(self.reserved)
        try:
            self.store.reserve(nbytes, {key})
        except InsufficientStorage:
            assert kept + nbytes > BUDGET, "refused what would have fitted"
            return False
        assert kept + nbytes <= BUDGET, "took what does not fit"
        return True

    def _cost(self, key: Key) -> int:
        if key not in self.tokens:
            return 0
        appends = self.tokens[key]
        return cost(sum(appends), sum(tokens > 0 for tokens in appends), int(bool(appends)))

    def _costs(self) -> int:
        return sum(map(self._cost, self.tokens))

    def _make_room(self, key: Key) -> None:
        while self._costs() > BUDGET:
            self._forget(next(other for other in self.tokens if other != key))

    @rule(key=KEYS, ttl=TTLS)
    def make(self, key: Key, ttl: float | None) -> None:
        if self.store.find(key) is None and self._reserve(key, EMPTY):
            self.store.put(key, opened(ttl), EMPTY)
            self.tokens[key], self.ttl[key] = [], ttl
            self._make_room(key)
            self._use(key)

    @rule(key=KEYS, tokens=st.sampled_from([0, 1, 30, 60, 90, 200, 238, 239]), ttl=TTLS)
    def append(self, key: Key, tokens: int, ttl: float | None) -> None:
        entry = self.store.find(key)
        session = entry.session if entry else opened(ttl)
        more = (RUN_NBYTES if not self.tokens.get(key) else 0) + (PAGE_NBYTES + tokens * TOKEN if tokens else 0)
        more += 0 if entry else EMPTY
        if self._reserve(key, more):
            self.store.put(key, grown(session, tokens), more)
            if entry is None:
                self.tokens[key], self.ttl[key] = [], ttl
            self.tokens[key].append(tokens)
            self._make_room(key)
            self._use(key)

    @rule(key=KEYS, nbytes=st.sampled_from([0, 100, 5000]))
    def begin_work_elsewhere(self, key: Key, nbytes: int) -> None:
        if self._reserve(key, nbytes):
            self.reserved.append(nbytes)

    @precondition(lambda self: self.reserved)
    @rule()
    def abandon_work(self) -> None:
        self.store.release(self.reserved.pop())

    @rule(key=KEYS)
    def touch(self, key: Key) -> None:
        if self.store.find(key) is not None:
            self.store.touch(key)
            self._use(key)

    @rule(key=KEYS)
    def delete(self, key: Key) -> None:
        if self.store.find(key) is not None:
            self.store.remove(key)
            self._forget(key)

    @rule(seconds=st.sampled_from([0.25, 0.5, 0.5, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self._forget_expired()

    @rule()
    def settle(self) -> None:
        self.clock.now += 1
        self._forget_expired()
        self.store.sweep()
        assert self.store.ledger.used == self._costs() + sum(self.reserved)
        assert len(self.store) == len(self.tokens)

    @invariant()
    def the_ledger_counts_all_there_is_within_the_budget(self) -> None:
        ledger = self.store.ledger
        assert 0 <= self._costs() <= ledger.stored <= BUDGET
        assert 0 <= ledger.reserved == sum(self.reserved) <= BUDGET, "more is promised than there ever will be"

    @invariant()
    def those_are_there_who_should_be(self) -> None:
        for key in NAMES:
            entry = self.store.find(key)
            assert (entry is not None) == (key in self.tokens), key
            if entry is not None:
                assert entry.session.nbytes == sum(self.tokens[key]) * TOKEN
                assert entry.cost == self._cost(key)
                assert entry.expires == self.expires[key]

    @invariant()
    def a_list_shows_them(self) -> None:
        found, _ = self.store.page("", "", "", 10)
        assert [id_ for id_, _ in found] == sorted(id_ for owner, id_ in self.tokens if owner == "")


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    derandomize=True, database=None, deadline=None, max_examples=250, stateful_step_count=40
)
