"""Workload: threads that use sessions of their own and remember every response."""

import random
import tempfile
import time
import traceback
from collections.abc import Callable
from itertools import groupby

import numpy as np

from fault_injection.report import Tally, Violation
from fault_injection.sessions import check
from fault_injection.sessions.model import Append, Durability, KnownSession, State
from fault_injection.sessions.pool import TOKENS, Numbers, Pool
from fault_injection.sessions.recorded_calls import Caller, Evicted, Expectations, Rejected
from hadakv_client import Client, PositionConflict, Session, TransportError

SESSIONS = 5  # maximum per thread
ABOUT_MAX_TOKENS = 1200  # approximate maximum per session
MAX_CALLS = 100_000  # per thread and round
ANSWER_SECONDS = 60.0
TTL_SECONDS = 86400.0
WINDOWS = (None, None, None, 40, 300)
DURABILITIES: tuple[Durability, ...] = ("ack", "ack", "ack", "ack", "spill", "spill", "spill", "memory")


class Worker:
    """Thread that sends one request after another.

    Args:
        name: prefix of its session ids.
        sessions: its sessions. The list is changed in place.
        pools: pools of tokens, one for each shape.
        rng: random generator that chooses the requests.
        tally: counters.
        expected: failures that requests may meet.
    """

    def __init__(
        self,
        name: str,
        sessions: list[KnownSession],
        pools: list[Pool],
        rng: random.Random,
        tally: Tally,
        expected: Expectations,
    ) -> None:
        self._name = name
        self._sessions = sessions
        self._pools = pools
        self._rng = rng
        self._tally = tally
        self._expected = expected
        self._ask = Caller(tally, expected).ask
        self._actions: tuple[tuple[Callable[[KnownSession], object], int], ...] = (
            *(
                (self._append, 48),
                (self._repeat, 7),
                (self._append_misplaced, 4),
                (self._read, 10),
                (self._describe, 5),
            ),
            *((self._truncate, 10), (self._fork, 9), (self._delete, 7), (self._export_import, 4)),
        )

    def run(self, url: str) -> None:
        """Send requests until the round is over or the service ends."""
        try:
            with (
                Client(url, retries=0, timeout=ANSWER_SECONDS) as self._client,
                tempfile.TemporaryDirectory() as self._folder,
            ):
                for _ in range(MAX_CALLS):
                    if self._expected.over.is_set():
                        return
                    self._one()
        except TransportError as error:
            if not self._expected.ending.is_set():
                self._tally.violation(f"{self._name}: no response, though the service was not stopped: {error!r}")
        except Violation as error:
            self._tally.violation(str(error))
        except Exception as error:
            self._tally.violation(f"{self._name}: {error!r}\n{traceback.format_exc()}")

    def _one(self) -> None:
        actions, weights = zip(*self._actions, strict=True)
        (action,) = self._rng.choices(actions, weights)
        unsynced_only, busy = self._expected.unsynced_only.is_set(), self._expected.busy.is_set()
        mine = [each for each in self._sessions if each.durability == "spill" or not (unsynced_only or busy)]
        known = self._rng.choice(mine) if mine else None
        try:
            if busy:
                self._append_to(mine[0] if mine else self._new_spill_session(), 1, 4)
            elif unsynced_only:
                self._one_unsynced(known)
            elif known is None or (len(self._sessions) < SESSIONS and self._rng.random() < 0.1):
                self._make()
            elif known.durability == "memory" and not any(known.state.lengths if known.state else ()):
                # If the session was evicted, an append would create a new one with durability `ack`.
                self._delete(known)
            else:
                action(known)
        except (Rejected, Evicted):
            self._sessions[:] = [each for each in self._sessions if each.state is not None]

    def _one_unsynced(self, known: KnownSession | None) -> None:
        if known is None:
            self._expected.over.wait(0.01)
        else:
            taking = self._truncate if self._expected.unsynced_change == "truncate" else self._delete
            self._rng.choice((self._append, self._append, self._read, taking))(known)

    def _session(self, known: KnownSession) -> Session:
        return check.handle(self._client, known)

    def _unused_name(self) -> str:
        taken = {known.name for known in self._sessions}
        return self._rng.choice([name for i in range(SESSIONS) if (name := f"{self._name}-{i}") not in taken])

    def _make(self) -> None:
        durability = self._rng.choice(DURABILITIES)
        known = KnownSession(self._unused_name(), self._rng.choice(self._pools), durability)
        self._sessions.append(known)
        window = self._rng.choice(WINDOWS)
        if window or durability != "ack" or self._rng.random() < 0.3:
            session, empty = self._session(known), State.empty(known.layers, window)
            ttl = self._rng.choice((None, TTL_SECONDS))
            self._ask(known, lambda: session.create(window=window, durability=durability, ttl_seconds=ttl), empty)
        self._append(known)

    def _new_spill_session(self) -> KnownSession:
        """Create a session without tokens in place of another one."""
        if len(self._sessions) == SESSIONS:
            self._delete(self._sessions[0])
        known = KnownSession(self._unused_name(), self._rng.choice(self._pools), "spill")
        self._sessions.append(known)
        session = self._session(known)
        self._ask(known, lambda: session.create(durability="spill"), State.empty(known.layers, None))
        return known

    def _numbers(self, count: int) -> Numbers:
        first = self._rng.randrange(TOKENS)
        return (first + np.arange(count) * self._rng.choice((1, 3, 5))) % TOKENS

    def _layers_of_one_length(self, state: State) -> slice:
        """Return consecutive layers of one length: all of them, or one."""
        groups = [list(group) for _, group in groupby(range(len(state.layers)), lambda layer: state.lengths[layer])]
        group = self._rng.choice(groups)
        if self._rng.random() < 0.1:
            group = [self._rng.choice(group)]
        return slice(group[0], group[-1] + 1)

    def _append(self, known: KnownSession) -> None:
        before = known.state or State.empty(known.layers, None)
        if max(before.lengths) > ABOUT_MAX_TOKENS:
            self._rng.choice((self._truncate, self._delete))(known)
            return
        self._append_to(known, *self._rng.choices(((1, 1), (2, 8), (9, 120), (200, 600)), (40, 25, 25, 10))[0])

    def _append_to(self, known: KnownSession, least: int, most: int) -> None:
        """Append a number of tokens between two."""
        before = known.state or State.empty(known.layers, None)
        layers = self._layers_of_one_length(before)
        append = Append(layers, before.lengths[layers.start], self._numbers(self._rng.randint(least, most)))
        self._send(known, append, before.grown(layers, append.numbers))

    def _send(self, known: KnownSession, append: Append, state: State | None) -> None:
        made = known.state is None
        began = time.perf_counter()
        answer = self._ask(known, lambda: check.send(self._session(known), known, append), state, append)
        self._tally.append_seconds.append(time.perf_counter() - began)
        self._tally.add("bytes", check.appended(known, append, answer))
        if answer.created and not made:
            self._created_again(known, append)
        self._tally.add("appends")
        self._tally.add("tokens", len(append.numbers))

    def _created_again(self, known: KnownSession, append: Append) -> None:
        """Record that an append to an evicted session has created a new one, with the default durability."""
        if known.durability == "ack" or append.position:
            raise Violation(f"{known.name} ({known.durability}) was missing when tokens were appended")
        known.durability = "ack"
        known.state = State.empty(known.layers, None).grown(append.layers, append.numbers)

    def _repeat(self, known: KnownSession) -> None:
        if known.last:
            self._send(known, known.last, known.state)
            self._tally.add("repeated")

    def _append_misplaced(self, known: KnownSession) -> None:
        """Send an append at a wrong position that repeats nothing. It must be rejected and change nothing."""
        assert known.state is not None
        layers = self._layers_of_one_length(known.state)
        length, count = known.state.lengths[layers.start], self._rng.randint(1, 5)
        if not length:
            # The error would be the same as for an evicted session.
            return
        append = Append(layers, length + count, self._numbers(count))
        if length >= count and self._rng.random() < 0.5:
            there = known.state.layers[layers.start][length - count :]
            append = Append(layers, length - count, (there + 1) % TOKENS)
        state = known.state
        try:
            answer = self._ask(known, lambda: check.send(self._session(known), known, append), state)
        except PositionConflict as conflict:
            if conflict.length != length:
                raise Violation(
                    f"{known.name}: conflict reports {conflict.length} tokens, expected {length}"
                ) from conflict
            return
        if not answer.created:
            raise Violation(f"{known.name}: an append at {append.position} of {length} was not rejected")
        # At position 0 it creates a new session, if the old one was evicted.
        self._created_again(known, append)
        known.last = append

    def _read(self, known: KnownSession) -> None:
        assert known.state is not None
        layer = self._rng.randrange(known.layers)
        first, length = known.state.first(layer), known.state.lengths[layer]
        if first >= length:
            return
        start = self._rng.randint(first, length - 1)
        stop = self._rng.randint(start + 1, length)
        session, state = self._session(known), known.state
        last = known.last
        read = self._ask(known, lambda: session.read(start, stop, layers=(layer, layer + 1)), state)
        known.last = last
        numbers = state.layers[layer][start:stop]
        nbytes, wrong = known.pool.difference(slice(layer, layer + 1), numbers, read.k, read.v)
        self._tally.add("bytes", nbytes)
        if wrong:
            raise Violation(f"{known.name} ({known.durability}): positions {start} to {stop} of layer {layer}: {wrong}")

    def _describe(self, known: KnownSession) -> None:
        """Check the description of a session."""
        state, last, session = known.state, known.last, self._session(known)
        assert state is not None
        info = self._ask(known, session.info, state)
        known.last = last
        by_layer = {span.layer: span.length for span in info.layers}
        if (
            tuple(by_layer.get(layer, 0) for layer in range(known.layers)) != state.lengths
            or info.durability != known.durability
        ):
            raise Violation(f"{known.name} ({known.durability}): {info}, expected {state.lengths} tokens")
        self._tally.add("looked at")
        self._tally.add("spilled", info.tier != "memory")

    def _random_length(self, state: State) -> int | None:
        """Return a length to which a session can be truncated; None if there is none."""
        least, most = max(state.gone), max(state.lengths)
        return self._rng.randint(least, most) if least <= most else None

    def _truncate(self, known: KnownSession) -> None:
        assert known.state is not None
        length = self._random_length(known.state)
        if length is not None:
            session = self._session(known)
            self._ask(known, lambda: session.truncate(length), known.state.cut(length))

    def _fork(self, known: KnownSession) -> None:
        assert known.state is not None
        length = self._random_length(known.state)
        if length is None or len(self._sessions) == SESSIONS:
            return
        cut = self._rng.choice((None, length))
        new = KnownSession(self._unused_name(), known.pool, known.durability)
        self._sessions.append(new)
        state = known.state if cut is None else known.state.cut(cut)
        session = self._session(known)
        self._ask(new, lambda: session.fork(new.name, cut), state)

    def _export_import(self, known: KnownSession) -> None:
        """Export a session, and import it as another one, which has the default durability."""
        assert known.state is not None
        if len(self._sessions) == SESSIONS or not any(known.state.lengths):
            return
        state, last, session = known.state, known.last, self._session(known)
        path = f"{self._folder}/session.safetensors"
        self._ask(known, lambda: session.export(path), state)
        known.last = last
        new = KnownSession(self._unused_name(), known.pool)
        self._sessions.append(new)
        self._ask(new, lambda: self._client.import_session(path, new.name), state)

    def _delete(self, known: KnownSession) -> None:
        session = self._session(known)
        self._ask(known, session.delete, None)
        self._sessions.remove(known)
