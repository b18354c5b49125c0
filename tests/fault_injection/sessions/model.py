"""Expected content of sessions, by the responses received and by the request that is still pending."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Literal

import numpy as np

from fault_injection.sessions.pool import Numbers, Pool

Durability = Literal["memory", "spill", "ack"]


@dataclass(frozen=True, eq=False)
class State:
    """Content of a session.

    Attributes:
        layers: token numbers of each layer from position 0, including tokens that have left the window.
        gone: for each layer the position before which tokens have left the window.
        window: number of tokens that each layer keeps; None keeps all.
    """

    layers: tuple[Numbers, ...]
    gone: tuple[int, ...]
    window: int | None = None

    @classmethod
    def empty(cls, layers: int, window: int | None) -> "State":
        """Return the state of an empty session."""
        return cls((np.empty(0, np.intp),) * layers, (0,) * layers, window)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each layer."""
        return tuple(map(len, self.layers))

    def first(self, layer: int) -> int:
        """Return the first position of a layer that can certainly be read."""
        return max(self.gone[layer], len(self.layers[layer]) - (self.window or len(self.layers[layer])))

    def grown(self, layers: slice, numbers: Numbers) -> "State":
        """Return the state with tokens appended to some layers."""
        chosen = range(*layers.indices(len(self.layers)))
        grown = tuple(np.append(each, numbers) if i in chosen else each for i, each in enumerate(self.layers))
        leaving = [0 if self.window is None else len(each) - self.window for each in grown]
        return State(grown, tuple(map(max, self.gone, leaving)), self.window)

    def cut(self, length: int) -> "State":
        """Return the state truncated to a length."""
        return State(self.cut_each([length] * len(self.layers)), self.gone, self.window)

    def cut_each(self, lengths: Sequence[int]) -> tuple[Numbers, ...]:
        """Return the layers, each truncated to its own length."""
        return tuple(each[:length] for each, length in zip(self.layers, lengths, strict=True))


@dataclass(frozen=True, eq=False)
class Append:
    """An append that can be sent again."""

    layers: slice
    position: int
    numbers: Numbers


class PendingCall:
    """Request without a response: the state that it leads to, and the append if it is one."""

    def __init__(self, state: State | None, append: Append | None = None) -> None:
        self.state = state
        self.append = append


@dataclass(eq=False)
class KnownSession:
    """Session as its client knows it. Used by one thread.

    Attributes:
        name: session id.
        pool: pool of its tokens.
        durability: durability of the session.
        state: content by the responses received; None if the session does not exist.
        pending: request in progress, or without a response.
        last: the last append, if no other request followed.
        history: states since the last start of the service, with the time of each response, by `time.monotonic`.
        saved: lengths of the layers that the next start must find at least, by a completed checkpoint; None if none.
    """

    name: str
    pool: Pool
    durability: Durability = "ack"
    state: State | None = None
    pending: PendingCall | None = None
    last: Append | None = field(default=None)
    history: list[tuple[float, State | None]] = field(default_factory=list)
    saved: tuple[int, ...] | None = None

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.pool.shape.layers

    def ask(self, state: State | None, append: Append | None = None) -> None:
        """Record a request that is about to be sent, and the state that it leads to."""
        self.pending, self.last = PendingCall(state, append), None

    def answered(self) -> None:
        """Record that the request succeeded."""
        assert self.pending is not None
        self.state, self.last, self.pending = self.pending.state, self.pending.append, None
        self.history.append((time.monotonic(), self.state))

    def rejected(self) -> None:
        """Record that the request was rejected."""
        self.pending = None

    def found(self, state: State | None) -> None:
        """Record the state that a start of the service has found on disk."""
        self.state, self.history, self.saved = state, [(-inf, state)], None

    def note_saved(self, until: float) -> None:
        """Record what the next start must find, if every change acknowledged before a time is on disk."""
        states = [state for moment, state in self.history if moment < until]
        saved = states[-1] if states else None
        later = [state for moment, state in self.history if moment >= until]
        later += [self.pending.state] if self.pending else []
        # A truncation of tokens that a later checkpoint has written deletes the session from disk until the next one.
        is_kept = saved and all(
            after and before and all(map(int.__le__, before.lengths, after.lengths))
            for before, after in pairwise([saved, *later])
        )
        self.saved = saved.lengths if saved and is_kept else None

    @property
    def possible(self) -> list[State | None]:
        """Possible states: the last one confirmed, and the one that the pending request leads to."""
        return [self.state, *([self.pending.state] if self.pending else [])]
