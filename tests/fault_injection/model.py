"""What sessions have to hold, by what was answered; and may hold, by what was asked and not answered."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fault_injection.pool import Numbers, Pool

Durability = Literal["memory", "spill", "ack"]


@dataclass(frozen=True, eq=False)
class State:
    """What a session holds.

    Attributes:
        layers: numbers of the tokens of each layer from position 0 on, whether they have left the window or not.
        gone: before which position each layer's tokens have left the window at some time.
        window: how many tokens each layer keeps; None keeps all.
    """

    layers: tuple[Numbers, ...]
    gone: tuple[int, ...]
    window: int | None = None

    @classmethod
    def empty(cls, layers: int, window: int | None) -> "State":
        """A session of no tokens."""
        return cls((np.empty(0, np.intp),) * layers, (0,) * layers, window)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of each layer."""
        return tuple(map(len, self.layers))

    def first(self, layer: int) -> int:
        """The first position that a layer certainly answers for."""
        return max(self.gone[layer], len(self.layers[layer]) - (self.window or len(self.layers[layer])))

    def grown(self, layers: slice, numbers: Numbers) -> "State":
        """With tokens at the end of some layers."""
        chosen = range(*layers.indices(len(self.layers)))
        grown = tuple(np.append(each, numbers) if i in chosen else each for i, each in enumerate(self.layers))
        leaving = [0 if self.window is None else len(each) - self.window for each in grown]
        return State(grown, tuple(map(max, self.gone, leaving)), self.window)

    def cut(self, length: int) -> "State":
        """Without the tokens from a position on."""
        return State(self.cut_each([length] * len(self.layers)), self.gone, self.window)

    def cut_each(self, lengths: Sequence[int]) -> tuple[Numbers, ...]:
        """Its layers, each without the tokens from a position on."""
        return tuple(each[:length] for each, length in zip(self.layers, lengths, strict=True))


@dataclass(frozen=True, eq=False)
class Append:
    """An append that can be sent again."""

    layers: slice
    position: int
    numbers: Numbers


class Unanswered:
    """What becomes of a session by a call that was not answered."""

    def __init__(self, state: State | None, append: Append | None = None) -> None:
        self.state = state
        self.append = append


@dataclass(eq=False)
class Known:
    """A session, as who uses it knows it. One thread does.

    Attributes:
        name: its id.
        pool: its tokens.
        durability: what of it outlives the process.
        state: what it holds by all that was answered; None if there is no such session.
        unanswered: the call that is under way, or whose answer never came.
        last: the last append, if nothing came after it.
    """

    name: str
    pool: Pool
    durability: Durability = "ack"
    state: State | None = None
    unanswered: Unanswered | None = None
    last: Append | None = field(default=None)

    @property
    def layers(self) -> int:
        """Of its shape."""
        return self.pool.shape.layers

    def ask(self, state: State | None, append: Append | None = None) -> None:
        """Note what is about to be asked for, and what becomes of the session by it."""
        self.unanswered, self.last = Unanswered(state, append), None

    def answered(self) -> None:
        """Note that it was done."""
        assert self.unanswered is not None
        self.state, self.last, self.unanswered = self.unanswered.state, self.unanswered.append, None

    def refused(self) -> None:
        """Note that it was not."""
        self.unanswered = None

    @property
    def possible(self) -> list[State | None]:
        """What it may hold: what was answered or, all of it or nothing, what was asked for since."""
        return [self.state, *([self.unanswered.state] if self.unanswered else [])]
