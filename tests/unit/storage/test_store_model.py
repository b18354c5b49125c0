"""The store against a plain model of its sessions: any calls, in any order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hadakv_service.device.jobs import run_to_completion
from hadakv_service.errors import InsufficientStorage
from hadakv_service.sessions.session import Session
from hadakv_service.storage.memory_budget import PAGE_OVERHEAD_NBYTES, RUN_OVERHEAD_NBYTES
from hadakv_service.storage.session_store import Key, Reservation, SessionStore
from support.inputs.sized_sessions import ANN, BOB, EMPTY, TOKEN, Clock, cost, grown, opened
from support.thoroughness import examples

NAMES = (ANN, BOB, ("tenant", "ann"))
KEYS = st.sampled_from(NAMES)
TTLS = st.sampled_from([None, 0.5, 0.5, 3.0])
# Less than a page of tokens for one session, or three small sessions.
BUDGET = cost(200, 2)


class StoreMachine(RuleBasedStateMachine):
    """The store against dictionaries of sessions, least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = SessionStore(BUDGET, self.clock)
        # Number of tokens of each append.
        self.tokens: dict[Key, list[int]] = {}
        self.expires: dict[Key, float | None] = {}
        self.ttl: dict[Key, float | None] = {}
        self.reserved: list[Reservation] = []

    def _use(self, key: Key) -> None:
        ttl = self.ttl[key]
        self.expires[key] = None if ttl is None else self.clock.now + ttl
        self.tokens[key] = self.tokens.pop(key)

    def _expire(self) -> None:
        for key, moment in list(self.expires.items()):
            if moment is not None and moment <= self.clock.now:
                self._delete(key)

    def _delete(self, key: Key) -> None:
        for model in (self.tokens, self.expires, self.ttl):
            del model[key]

    def _reserve(
        self, key: Key, session: Session, expected: int, nbytes: int = 0, pages: int = 0
    ) -> Reservation | None:
        """Reserve the expected bytes through the store; None if they do not fit. Nothing is evicted for it."""
        kept = self._cost(key) + self._reserved_nbytes()
        try:
            reservation = self.store.reserve(key, session, {key}, nbytes=nbytes, pages=pages)
        except InsufficientStorage:
            assert kept + expected > BUDGET, "rejected what would have fitted"
            return None
        assert reservation.nbytes == expected
        assert kept + expected <= BUDGET, "accepted what does not fit"
        return reservation

    def _reserved_nbytes(self) -> int:
        return sum(reservation.nbytes for reservation in self.reserved)

    def _cost(self, key: Key) -> int:
        if key not in self.tokens:
            return 0
        appends = self.tokens[key]
        return cost(sum(appends), sum(tokens > 0 for tokens in appends), int(bool(appends)))

    def _costs(self) -> int:
        return sum(map(self._cost, self.tokens))

    def _evict(self, key: Key) -> None:
        while self._costs() > BUDGET:
            self._delete(next(other for other in self.tokens if other != key))

    @rule(key=KEYS, ttl=TTLS)
    def make(self, key: Key, ttl: float | None) -> None:
        if self.store.find(key) is None and (reservation := self._reserve(key, opened(ttl), EMPTY)):
            run_to_completion(self.store.commit(reservation, opened(ttl)))
            self.tokens[key], self.ttl[key] = [], ttl
            self._evict(key)
            self._use(key)

    @rule(key=KEYS, tokens=st.sampled_from([0, 1, 30, 60, 90, 200, 238, 239]), ttl=TTLS)
    def append(self, key: Key, tokens: int, ttl: float | None) -> None:
        record = self.store.find(key)
        session = (record.session if record else opened(ttl)).split_runs(0, 1)
        more = (RUN_OVERHEAD_NBYTES if not self.tokens.get(key) else 0) + (
            PAGE_OVERHEAD_NBYTES + tokens * TOKEN if tokens else 0
        )
        more += 0 if record else EMPTY
        pages = session.new_pages(0, 1, tokens)
        if reservation := self._reserve(key, session, more, tokens * TOKEN, pages):
            run_to_completion(self.store.commit(reservation, grown(session, tokens)))
            if record is None:
                self.tokens[key], self.ttl[key] = [], ttl
            self.tokens[key].append(tokens)
            self._evict(key)
            self._use(key)

    @rule(key=KEYS, nbytes=st.sampled_from([0, 100, 5000]))
    def reserve_for_later(self, key: Key, nbytes: int) -> None:
        record = self.store.find(key)
        session = record.session if record else opened()
        if reservation := self._reserve(key, session, nbytes + (0 if record else EMPTY), nbytes):
            self.reserved.append(reservation)

    @precondition(lambda self: self.reserved)
    @rule()
    def release_reservation(self) -> None:
        reservation = self.reserved.pop()
        reservation.release()
        reservation.release()

    @rule(key=KEYS)
    def touch(self, key: Key) -> None:
        if self.store.find(key) is not None:
            self.store.touch(key)
            self._use(key)

    @rule(key=KEYS)
    def delete(self, key: Key) -> None:
        if self.store.find(key) is not None:
            self.store.delete(key)
            self._delete(key)

    @rule(seconds=st.sampled_from([0.25, 0.5, 0.5, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self._expire()

    @rule()
    def expire(self) -> None:
        self.clock.now += 1
        self._expire()
        self.store.expire()
        assert self.store.memory.used == self._costs() + self._reserved_nbytes()
        assert len(self.store) == len(self.tokens)

    @invariant()
    def counters_match_contents_within_budget(self) -> None:
        memory = self.store.memory
        assert 0 <= self._costs() <= memory.stored <= BUDGET
        assert 0 <= memory.reserved == self._reserved_nbytes() <= BUDGET, "more is reserved than the budget"

    @invariant()
    def expected_sessions_exist(self) -> None:
        for key in NAMES:
            record = self.store.find(key)
            assert (record is not None) == (key in self.tokens), key
            if record is not None:
                assert record.session.nbytes == sum(self.tokens[key]) * TOKEN
                assert record.cost == self._cost(key)
                assert record.expires == self.expires[key]

    @invariant()
    def list_shows_them(self) -> None:
        found, _ = self.store.list_sessions("", "", "", 10)
        assert [id_ for id_, _ in found] == sorted(id_ for owner, id_ in self.tokens if owner == "")


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    derandomize=True, database=None, deadline=None, max_examples=examples(100, exhaustive=250), stateful_step_count=40
)
