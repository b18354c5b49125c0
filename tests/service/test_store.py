"""The store by itself: the ledger, the budget, who makes room for whom, and who expires when."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hadakv_kernels import Codec, Encoded
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.errors import InsufficientStorage, SessionNotFound
from hadakv_service.pages import Page
from hadakv_service.session import Session
from hadakv_service.store import Key, Store

BACKEND = CpuBackend()
SPEC = Codec(bits=2).at(64)
TOKEN = 2 * SPEC.nbytes


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def grown(session: Session, tokens: int) -> Session:
    """The session with so many tokens more, each of TOKEN bytes."""
    lead = (1, 1, tokens)
    stream = Encoded(np.zeros((*lead, SPEC.row_bytes), np.uint8), np.zeros((*lead, SPEC.norms), np.float32))
    return session.append(0, Page(stream, stream), BACKEND) if tokens else session


def opened(ttl_seconds: float | None = None, window: int | None = None) -> Session:
    codec = Codec(bits=2)
    return Session((codec, codec), kv_heads=1, head_dim=64, ttl_seconds=ttl_seconds, window=window)


def append(store: Store, key: Key, tokens: int, ttl_seconds: float | None = None) -> None:
    """What an append does to the store."""
    entry = store.find(key)
    store.reserve(tokens * TOKEN, {key})
    store.put(key, grown(entry.session if entry else opened(ttl_seconds), tokens), tokens * TOKEN)


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
    store = Store(100 * TOKEN)
    append(store, ANN, 30)
    append(store, BOB, 20)

    store.remove(ANN)
    store.remove(ANN)

    assert store.ledger.used == 20 * TOKEN
    assert store.ledger.free == 80 * TOKEN
    assert len(store) == 1


def test_a_page_lists_one_owners_sessions_in_order_of_id() -> None:
    store = Store(0)
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
    store = Store(100 * TOKEN, clock)
    for key in (ANN, BOB, CID):
        append(store, key, 30)
    store.touch(ANN)

    append(store, DAN, 35)

    assert [store.find(key) is not None for key in (ANN, BOB, CID, DAN)] == [True, False, True, True]
    assert store.evictions == 1
    assert store.ledger.used == 95 * TOKEN


def test_nothing_is_evicted_where_that_would_not_help() -> None:
    store = Store(100 * TOKEN)
    append(store, ANN, 30)
    append(store, BOB, 40)

    with pytest.raises(InsufficientStorage) as refused:
        store.reserve(61 * TOKEN, {BOB})

    assert refused.value.fields == {"needed": 61 * TOKEN, "budget": 100 * TOKEN}
    assert (len(store), store.evictions, store.ledger.used) == (2, 0, 70 * TOKEN)


def test_sessions_without_tokens_are_not_evicted() -> None:
    store = Store(100 * TOKEN)
    store.put(ANN, opened())
    append(store, BOB, 90)

    append(store, CID, 50)

    assert [store.find(key) is not None for key in (ANN, BOB, CID)] == [True, False, True]


def test_a_window_gives_back_what_an_append_pushed_out() -> None:
    store = Store(2000 * TOKEN)
    store.put(ANN, opened(window=1))
    for _ in range(4):
        append(store, ANN, 300)

    assert store.ledger.used == store.get(ANN).session.nbytes < 600 * TOKEN


# Expiry


def test_a_session_expires_when_it_was_not_used_for_its_ttl() -> None:
    clock = Clock()
    store = Store(100 * TOKEN, clock)
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
    store = Store(100 * TOKEN, clock)
    store.put(ANN, opened(ttl_seconds=10))

    clock.now += 9
    use(store)
    clock.now += 9

    entry = store.get(ANN)
    assert (entry.last_used, entry.expires) == (clock.now - 9, clock.now + 1)
    assert entry.created == clock.now - 18


def test_a_session_without_a_ttl_lives_on() -> None:
    clock = Clock()
    store = Store(100 * TOKEN, clock)
    store.put(ANN, opened())

    clock.now += 1e9

    assert store.get(ANN).expires is None


def test_a_sweep_frees_the_bytes_of_the_expired() -> None:
    clock = Clock()
    store = Store(100 * TOKEN, clock)
    append(store, ANN, 10, ttl_seconds=5)
    append(store, BOB, 20)

    clock.now += 5
    store.sweep()

    assert (len(store), store.ledger.used) == (1, 20 * TOKEN)


def test_an_expired_session_begins_anew() -> None:
    clock = Clock()
    store = Store(100 * TOKEN, clock)
    append(store, ANN, 10, ttl_seconds=5)

    clock.now += 6
    append(store, ANN, 3)

    entry = store.get(ANN)
    assert (entry.created, entry.expires) == (clock.now, None)
    assert store.ledger.used == entry.session.nbytes == 3 * TOKEN


def test_an_expired_session_makes_room_for_the_one_that_takes_its_name() -> None:
    clock = Clock()
    store = Store(100 * TOKEN, clock)
    append(store, ANN, 90, ttl_seconds=0.5)

    clock.now += 0.75
    append(store, ANN, 90)

    assert store.ledger.used == 90 * TOKEN


def test_the_expired_go_before_anybody_is_evicted() -> None:
    clock = Clock()
    store = Store(100 * TOKEN, clock)
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
BUDGET = 100 * TOKEN


class StoreMachine(RuleBasedStateMachine):
    """The store against a plain account of who has what, least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = Store(BUDGET, self.clock)
        self.tokens: dict[Key, int] = {}
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

    def _reserve(self, key: Key, tokens: int) -> bool:
        """Reserve through the store; whether there was room. Nobody is evicted for what is not stored."""
        kept = self.tokens.get(key, 0) + sum(self.reserved)
        try:
            self.store.reserve(tokens * TOKEN, {key})
        except InsufficientStorage:
            assert kept + tokens > 100, "refused what would have fitted"
            return False
        assert kept + tokens <= 100, "took what does not fit"
        return True

    @rule(key=KEYS, ttl=TTLS)
    def make(self, key: Key, ttl: float | None) -> None:
        if self.store.find(key) is None:
            self.store.put(key, opened(ttl))
            self.tokens[key], self.ttl[key] = 0, ttl
            self._use(key)

    @rule(key=KEYS, tokens=st.sampled_from([0, 1, 30, 60, 90, 100, 101]), ttl=TTLS)
    def append(self, key: Key, tokens: int, ttl: float | None) -> None:
        entry = self.store.find(key)
        session = entry.session if entry else opened(ttl)
        if self._reserve(key, tokens):
            self.store.put(key, grown(session, tokens), tokens * TOKEN)
            if entry is None:
                self.tokens[key], self.ttl[key] = 0, ttl
            self.tokens[key] += tokens
            while sum(self.tokens.values()) > 100:
                self._forget(next(other for other, held in self.tokens.items() if held and other != key))
            self._use(key)

    @rule(key=KEYS, tokens=st.sampled_from([0, 5, 50]))
    def begin_work_elsewhere(self, key: Key, tokens: int) -> None:
        if self._reserve(key, tokens):
            self.reserved.append(tokens)

    @precondition(lambda self: self.reserved)
    @rule()
    def abandon_work(self) -> None:
        self.store.release(self.reserved.pop() * TOKEN)

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
        assert self.store.ledger.used == TOKEN * (sum(self.tokens.values()) + sum(self.reserved))
        assert len(self.store) == len(self.tokens)

    @invariant()
    def the_ledger_counts_all_there_is_within_the_budget(self) -> None:
        ledger = self.store.ledger
        assert 0 <= TOKEN * sum(self.tokens.values()) <= ledger.stored <= BUDGET
        assert 0 <= ledger.reserved == TOKEN * sum(self.reserved) <= BUDGET, "more is promised than there ever will be"

    @invariant()
    def those_are_there_who_should_be(self) -> None:
        for key in NAMES:
            entry = self.store.find(key)
            assert (entry is not None) == (key in self.tokens), key
            if entry is not None:
                assert entry.session.nbytes == self.tokens[key] * TOKEN
                assert entry.expires == self.expires[key]

    @invariant()
    def a_list_shows_them(self) -> None:
        found, _ = self.store.page("", "", "", 10)
        assert [id_ for id_, _ in found] == sorted(id_ for owner, id_ in self.tokens if owner == "")


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    derandomize=True, database=None, deadline=None, max_examples=250, stateful_step_count=40
)
