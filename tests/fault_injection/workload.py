"""Who uses the service: threads that each have sessions of their own, and know what was answered."""

import random
import tempfile
import traceback
from collections.abc import Callable
from itertools import groupby

import numpy as np

from fault_injection import check
from fault_injection.model import Append, Durability, Known, State
from fault_injection.pool import TOKENS, Numbers, Pool
from fault_injection.recorded_calls import Caller, Gone, Refused, Weather
from fault_injection.report import Tally, Violation
from hadakv_client import Client, PositionConflict, Session, TransportError

SESSIONS = 5  # of each thread at most
MOST_TOKENS = 1200  # of a session, more or less
MOST_CALLS = 100_000  # of a thread in a round
ANSWER_SECONDS = 60.0
WINDOWS = (None, None, None, 40, 300)
DURABILITIES: tuple[Durability, ...] = ("ack", "ack", "ack", "ack", "spill", "spill", "spill", "memory")


class Worker:
    """Makes one call after another.

    Args:
        name: what its sessions' names begin with.
        sessions: its own, which it changes.
        pools: tokens of each shape.
        rng: decides what it does.
        tally: counts.
        weather: what is to be expected.
    """

    def __init__(
        self,
        name: str,
        sessions: list[Known],
        pools: list[Pool],
        rng: random.Random,
        tally: Tally,
        weather: Weather,
    ) -> None:
        self._name = name
        self._sessions = sessions
        self._pools = pools
        self._rng = rng
        self._tally = tally
        self._weather = weather
        self._ask = Caller(tally, weather).ask
        self._actions: tuple[tuple[Callable[[Known], object], int], ...] = (
            *((self._append, 48), (self._repeat, 7), (self._misplace, 4), (self._read, 10), (self._look, 5)),
            *((self._truncate, 10), (self._fork, 9), (self._delete, 7), (self._move, 4)),
        )

    def run(self, url: str) -> None:
        """Make calls to the service there until there are to be no more, or nobody answers."""
        try:
            with (
                Client(url, retries=0, timeout=ANSWER_SECONDS) as self._client,
                tempfile.TemporaryDirectory() as self._folder,
            ):
                for _ in range(MOST_CALLS):
                    if self._weather.over.is_set():
                        return
                    self._one()
        except TransportError as error:
            if not self._weather.ending.is_set():
                self._tally.violation(f"{self._name}: no answer though nobody ended the service: {error!r}")
        except Violation as error:
            self._tally.violation(str(error))
        except Exception as error:
            self._tally.violation(f"{self._name}: {error!r}\n{traceback.format_exc()}")

    def _one(self) -> None:
        actions, weights = zip(*self._actions, strict=True)
        (action,) = self._rng.choices(actions, weights)
        lazy = self._weather.lazy.is_set()
        mine = [each for each in self._sessions if each.durability == "spill"] if lazy else self._sessions
        known = self._rng.choice(mine) if mine else None
        try:
            if lazy:
                self._be_lazy(known)
            elif known is None or (len(self._sessions) < SESSIONS and self._rng.random() < 0.1):
                self._make()
            elif known.durability == "memory" and not any(known.state.lengths if known.state else ()):
                # If it was evicted, an append would make one of the same name that is acknowledged.
                self._delete(known)
            else:
                action(known)
        except (Refused, Gone):
            self._sessions[:] = [each for each in self._sessions if each.state is not None]

    def _be_lazy(self, known: Known | None) -> None:
        if known is None:
            self._weather.over.wait(0.01)
        else:
            taking = self._truncate if self._weather.lazy_but == "truncate" else self._delete
            self._rng.choice((self._append, self._append, self._read, taking))(known)

    def _session(self, known: Known) -> Session:
        return check.handle(self._client, known)

    def _free_name(self) -> str:
        taken = {known.name for known in self._sessions}
        return self._rng.choice([name for i in range(SESSIONS) if (name := f"{self._name}-{i}") not in taken])

    def _make(self) -> None:
        durability = self._rng.choice(DURABILITIES)
        known = Known(self._free_name(), self._rng.choice(self._pools), durability)
        self._sessions.append(known)
        window = self._rng.choice(WINDOWS)
        if window or durability != "ack" or self._rng.random() < 0.3:
            session, empty = self._session(known), State.empty(known.layers, window)
            self._ask(known, lambda: session.create(window=window, durability=durability), empty)
        self._append(known)

    def _numbers(self, count: int) -> Numbers:
        first = self._rng.randrange(TOKENS)
        return (first + np.arange(count) * self._rng.choice((1, 3, 5))) % TOKENS

    def _some_layers(self, state: State) -> slice:
        """Layers of one length: all of such, or one."""
        groups = [list(group) for _, group in groupby(range(len(state.layers)), lambda layer: state.lengths[layer])]
        group = self._rng.choice(groups)
        if self._rng.random() < 0.1:
            group = [self._rng.choice(group)]
        return slice(group[0], group[-1] + 1)

    def _append(self, known: Known) -> None:
        before = known.state or State.empty(known.layers, None)
        if max(before.lengths) > MOST_TOKENS:
            self._rng.choice((self._truncate, self._delete))(known)
            return
        layers = self._some_layers(before)
        rng = self._rng
        (least, most) = rng.choices(((1, 1), (2, 8), (9, 120), (200, 600)), (40, 25, 25, 10))[0]
        append = Append(layers, before.lengths[layers.start], self._numbers(rng.randint(least, most)))
        self._send(known, append, before.grown(layers, append.numbers))

    def _send(self, known: Known, append: Append, state: State | None) -> None:
        made = known.state is None
        answer = self._ask(known, lambda: check.send(self._session(known), known, append), state, append)
        self._tally.add("bytes", check.appended(known, append, answer))
        if answer.created and not made:
            self._made_anew(known, append)
        self._tally.add("appends")
        self._tally.add("tokens", len(append.numbers))

    def _made_anew(self, known: Known, append: Append) -> None:
        """An append found that its session was gone, and made one of the service's default durability."""
        if known.durability == "ack" or append.position:
            raise Violation(f"{known.name} ({known.durability}) was gone when it was appended to")
        known.durability = "ack"
        known.state = State.empty(known.layers, None).grown(append.layers, append.numbers)

    def _repeat(self, known: Known) -> None:
        if known.last:
            self._send(known, known.last, known.state)
            self._tally.add("repeated")

    def _misplace(self, known: Known) -> None:
        """An append that is not at the end and not a repetition is refused, and nothing happens."""
        assert known.state is not None
        layers = self._some_layers(known.state)
        length, count = known.state.lengths[layers.start], self._rng.randint(1, 5)
        if not length:
            # The refusal would be that of a session which was evicted.
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
                raise Violation(f"{known.name}: told to have {conflict.length} tokens and not {length}") from conflict
            return
        if not answer.created:
            raise Violation(f"{known.name}: an append at {append.position} of {length} was not refused")
        # At 0 it is the beginning of a new session, if the old one was evicted.
        self._made_anew(known, append)
        known.last = append

    def _read(self, known: Known) -> None:
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

    def _look(self, known: Known) -> None:
        """A session is described as what it is."""
        state, last, session = known.state, known.last, self._session(known)
        assert state is not None
        info = self._ask(known, session.info, state)
        known.last = last
        lengths = tuple(span.length for span in info.layers)
        if lengths + (0,) * (known.layers - len(lengths)) != state.lengths or info.durability != known.durability:
            raise Violation(f"{known.name} ({known.durability}): {info} and not {state.lengths} tokens")
        self._tally.add("looked at")
        self._tally.add("spilled", info.tier != "memory")

    def _a_length(self, state: State) -> int | None:
        """Where a session can be cut."""
        least, most = max(state.gone), max(state.lengths)
        return self._rng.randint(least, most) if least <= most else None

    def _truncate(self, known: Known) -> None:
        assert known.state is not None
        length = self._a_length(known.state)
        if length is not None:
            session = self._session(known)
            self._ask(known, lambda: session.truncate(length), known.state.cut(length))

    def _fork(self, known: Known) -> None:
        assert known.state is not None
        length = self._a_length(known.state)
        if length is None or len(self._sessions) == SESSIONS:
            return
        cut = self._rng.choice((None, length))
        new = Known(self._free_name(), known.pool, known.durability)
        self._sessions.append(new)
        state = known.state if cut is None else known.state.cut(cut)
        session = self._session(known)
        self._ask(new, lambda: session.fork(new.name, cut), state)

    def _move(self, known: Known) -> None:
        """A session goes into a file, and comes back as another one, which has the service's default durability."""
        assert known.state is not None
        if len(self._sessions) == SESSIONS or not any(known.state.lengths):
            return
        state, last, session = known.state, known.last, self._session(known)
        path = f"{self._folder}/session.safetensors"
        self._ask(known, lambda: session.export(path), state)
        known.last = last
        new = Known(self._free_name(), known.pool)
        self._sessions.append(new)
        self._ask(new, lambda: self._client.import_session(path, new.name), state)

    def _delete(self, known: Known) -> None:
        session = self._session(known)
        self._ask(known, session.delete, None)
        self._sessions.remove(known)
