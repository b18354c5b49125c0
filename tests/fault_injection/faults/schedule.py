"""Kinds of rounds, and their order for a seed."""

import random
from dataclasses import dataclass
from itertools import chain

from fault_injection.faults import disk, interpose

KINDS = {
    "kill": "kill -9 at a random time",
    "write": "kill -9 halfway through a write to a file",
    "sync": "kill -9 before an fsync",
    "start": "kill -9 while it starts",
    "term": "SIGTERM",
    "hangup": "SIGHUP",
    "hasty": "SIGTERM, then kill -9 during shutdown",
    "power": "power loss: only a part of the unsynced data is on disk",
    "full": "disk full, then free again; then kill -9 or SIGTERM",
    "errors": "failing writes and fsyncs for a while; then kill -9 or SIGTERM",
    "budget": "disk budget used up; then kill -9 or SIGTERM",
    "busy": "kill -9 after a checkpoint of sessions that are never idle",
    "slow": "slow fsyncs, so that sessions change while they are written; then kill -9",
    "clock": "wall clock set back or ahead; then kill -9 or SIGTERM",
}
# Number of rounds of each kind in a deck of twenty.
_DECK = {"kill": 3, "write": 2, "sync": 1, "start": 1, "term": 1, "hasty": 1, "power": 2, "full": 2, "errors": 2}
_DECK |= {"budget": 1, "busy": 1, "clock": 1, "slow": 1, "hangup": 1}
_INTERPOSED = {"write", "sync", "power", "errors", "clock", "slow"}


@dataclass(frozen=True)
class Plan:
    """Plan of a round.

    Attributes:
        number: number of the round, from 1.
        kind: key of `KINDS`.
        seed: random seed of the round.
        seconds: time in which requests are sent.
    """

    number: int
    kind: str
    seed: str
    seconds: float

    def rng(self, purpose: str) -> random.Random:
        """Return a random generator for one purpose."""
        return random.Random(f"{self.seed} {purpose}")


def possible() -> list[str]:
    """Return the kinds of rounds that this system can run."""
    full = interpose.AVAILABLE or disk.can_mount()
    missing = (set() if interpose.AVAILABLE else _INTERPOSED) | (set() if full else {"full"})
    return [kind for kind in KINDS if kind not in missing]


def schedule(rounds: int, seed: int, seconds: float, only: list[str] | None = None) -> list[Plan]:
    """Plan rounds: first one of each kind, then shuffled decks.

    Args:
        rounds: number of rounds.
        seed: random seed. The same seed gives the same rounds.
        seconds: maximum time in which a round sends requests.
        only: kinds of rounds to plan; None plans every kind that this system can run.
    """
    rng = random.Random(seed)
    kinds = [kind for kind in possible() if not only or kind in only]
    deck = [*chain.from_iterable([kind] * _DECK[kind] for kind in kinds)]
    chosen = rng.sample(kinds, len(kinds))
    while len(chosen) < rounds:
        chosen += rng.sample(deck, len(deck))
    return [
        Plan(number, kind, f"{seed} {number}", seconds * rng.uniform(0.3, 1.0))
        for number, kind in enumerate(chosen[:rounds], 1)
    ]
