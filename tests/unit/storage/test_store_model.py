"""The store against a plain account of who has what: any calls, in any order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hadakv_service.errors import InsufficientStorage
from hadakv_service.storage.memory_budget import PAGE_OVERHEAD_NBYTES, RUN_OVERHEAD_NBYTES
from hadakv_service.storage.session_store import Key, SessionStore
from support.sized_sessions import ANN, BOB, EMPTY, TOKEN, Clock, cost, grown, opened
from support.thoroughness import examples

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
        self.store = SessionStore(BUDGET, self.clock)
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
            self.store.commit(key, opened(ttl), EMPTY)
            self.tokens[key], self.ttl[key] = [], ttl
            self._make_room(key)
            self._use(key)

    @rule(key=KEYS, tokens=st.sampled_from([0, 1, 30, 60, 90, 200, 238, 239]), ttl=TTLS)
    def append(self, key: Key, tokens: int, ttl: float | None) -> None:
        entry = self.store.find(key)
        session = entry.session if entry else opened(ttl)
        more = (RUN_OVERHEAD_NBYTES if not self.tokens.get(key) else 0) + (
            PAGE_OVERHEAD_NBYTES + tokens * TOKEN if tokens else 0
        )
        more += 0 if entry else EMPTY
        if self._reserve(key, more):
            self.store.commit(key, grown(session, tokens), more)
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
            self.store.delete(key)
            self._forget(key)

    @rule(seconds=st.sampled_from([0.25, 0.5, 0.5, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self._forget_expired()

    @rule()
    def settle(self) -> None:
        self.clock.now += 1
        self._forget_expired()
        self.store.expire()
        assert self.store.memory.used == self._costs() + sum(self.reserved)
        assert len(self.store) == len(self.tokens)

    @invariant()
    def the_ledger_counts_all_there_is_within_the_budget(self) -> None:
        ledger = self.store.memory
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
        found, _ = self.store.list_sessions("", "", "", 10)
        assert [id_ for id_, _ in found] == sorted(id_ for owner, id_ in self.tokens if owner == "")


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    derandomize=True, database=None, deadline=None, max_examples=examples(100, exhaustive=250), stateful_step_count=40
)
