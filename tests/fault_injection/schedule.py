"""Which rounds there are, in which order, by a seed."""

import random
from dataclasses import dataclass
from itertools import chain

from fault_injection import disk, interpose

KINDS = {
    "kill": "kill -9 at some moment",
    "write": "kill -9 halfway through a write to a file",
    "sync": "kill -9 before an fsync",
    "start": "kill -9 while it starts",
    "term": "SIGTERM",
    "hasty": "SIGTERM, and kill -9 before it has ended",
    "power": "loss of power: of what was not synced only a part is there",
    "full": "the disk fills up and has room again; then kill -9 or SIGTERM",
    "errors": "writes and fsyncs fail for a while; then kill -9 or SIGTERM",
    "budget": "the disk budget is used up; then kill -9 or SIGTERM",
}
# Of twenty rounds in a row so many are of each kind.
_DECK = {"kill": 5, "write": 3, "sync": 1, "start": 1, "term": 2, "hasty": 1, "power": 2, "full": 2, "errors": 2}
_DECK |= {"budget": 1}
_INTERPOSED = {"write", "sync", "power", "errors"}


@dataclass(frozen=True)
class Plan:
    """A round.

    Attributes:
        number: which one, from 1.
        kind: how it goes, see `KINDS`.
        seed: of all that is random in it.
        seconds: how long calls are made.
    """

    number: int
    kind: str
    seed: str
    seconds: float

    def rng(self, purpose: str) -> random.Random:
        """Random numbers for some purpose."""
        return random.Random(f"{self.seed} {purpose}")


def possible() -> list[str]:
    """The kinds of rounds that can be made on this system."""
    full = interpose.AVAILABLE or disk.can_mount()
    missing = (set() if interpose.AVAILABLE else _INTERPOSED) | (set() if full else {"full"})
    return [kind for kind in KINDS if kind not in missing]


def schedule(rounds: int, seed: int, seconds: float, only: list[str] | None = None) -> list[Plan]:
    """So many rounds.

    Args:
        rounds: how many.
        seed: gives the same ones again.
        seconds: the longest that calls are made in one.
        only: the kinds there are to be; None is all that are possible.
    """
    rng = random.Random(seed)
    kinds = [kind for kind in possible() if not only or kind in only]
    deck = [*chain.from_iterable([kind] * _DECK[kind] for kind in kinds)]
    chosen: list[str] = []
    while len(chosen) < rounds:
        chosen += rng.sample(deck, len(deck))
    return [
        Plan(number, kind, f"{seed} {number}", seconds * rng.uniform(0.3, 1.0))
        for number, kind in enumerate(chosen[:rounds], 1)
    ]
