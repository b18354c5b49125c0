"""When something takes too long, on a clock that the test sets; and who has to make room for a new connection."""

import asyncio
from dataclasses import dataclass, field
from itertools import count

import pytest

from hadakv_service.errors import Busy, ServiceError
from hadakv_service.server.connection_monitor import ConnectionMonitor, Limits
from hadakv_service.server.progress_timeout import ProgressTimeout

SECONDS = 10


def first_late(
    looks: list[tuple[float, float]], of: object = "body", pace: ProgressTimeout | None = None
) -> float | None:
    """When something is late first, looked at at those times, when it had come so far."""
    pace = pace or ProgressTimeout()
    return next((now for now, came in looks if pace.expired(now, (of, of), came, SECONDS)), None)


def test_what_does_not_go_on_is_late_after_its_time() -> None:
    assert first_late([(now, 0) for now in range(100, 200)]) == 100 + SECONDS + 1
    assert first_late([(now, 0) for now in range(100, 100 + SECONDS + 1)]) is None


def test_what_keeps_its_pace_is_never_late() -> None:
    assert first_late([(now, now) for now in range(1000)]) is None


def test_what_is_a_little_too_slow_is_late_in_the_end() -> None:
    assert first_late([(now, 0.9 * now) for now in range(1000)]) == pytest.approx(SECONDS / 0.1 + 1, abs=1)


def test_haste_earns_no_time_to_stop_for_longer() -> None:
    rush = [(now, 1000 * now) for now in range(20)]

    assert first_late([*rush, *[(now, 20_000) for now in range(20, 100)]]) == 20 + SECONDS + 1


def test_time_that_is_not_its_own_does_not_count() -> None:
    pace = ProgressTimeout()
    late = [pace.expired(now, ("body", "body"), 0, SECONDS, is_blocked=now < 500) for now in range(600)]

    assert late.index(True) == 499 + SECONDS + 1


def test_another_thing_has_its_own_time() -> None:
    pace = ProgressTimeout()
    for now in range(100):
        one, other = object(), object()
        assert not pace.expired(now, ("head", one), 0, SECONDS)
        assert not pace.expired(now + SECONDS, ("head", other), 0, SECONDS), "another of the same kind"
        assert not pace.expired(now + 2 * SECONDS, ("body", other), 0, SECONDS), "the same of another kind"


def test_equal_things_are_not_the_same() -> None:
    pace = ProgressTimeout()
    heads: list[dict[str, str]] = [{}, {}]

    assert not pace.expired(0, ("head", heads[0]), 0, SECONDS)
    assert not pace.expired(100, ("head", heads[1]), 0, SECONDS)


def test_after_a_rest_time_begins_anew() -> None:
    pace = ProgressTimeout()
    pace.expired(0, ("body", "body"), 0, SECONDS)
    pace.reset()

    assert not pace.expired(100, ("body", "body"), 0, SECONDS)


# Room for new connections


@dataclass(eq=False)
class Peer:
    """A connection, as the watch sees one."""

    last_activity: float
    free: bool = True
    ended: bool = False
    refusals: list[ServiceError] = field(default_factory=list)

    def is_idle(self) -> bool:
        return self.free and not self.ended

    def check_timeouts(self, now: float) -> None:
        """Nothing is late."""

    def close(self) -> None:
        self.ended = True

    def reject(self, error: ServiceError) -> None:
        self.refusals.append(error)


class Door:
    """Lets newcomers in one after the other, each heard later than all before."""

    def __init__(self, peers: list[Peer], most: int) -> None:
        self._peers = peers
        loop = asyncio.new_event_loop()
        self._watch = ConnectionMonitor(peers, Limits(1, most, 1, 1, 1, 1), loop)
        self._heard = count(1000)
        loop.close()

    def admit(self) -> Peer:
        newcomer = Peer(next(self._heard))
        self._peers.append(newcomer)
        self._watch.admit(newcomer)
        self._peers[:] = [peer for peer in self._peers if not (peer.ended or peer.refusals)]
        return newcomer


def test_while_there_is_room_nobody_has_to_go() -> None:
    peers = [Peer(heard) for heard in (3, 1, 2)]
    door = Door(peers, most=5)

    door.admit()
    door.admit()

    assert len(peers) == 5


def test_who_was_heard_longest_ago_makes_room() -> None:
    peers = [Peer(heard) for heard in (3, 1, 5, 2, 4)]
    door, left = Door(peers, most=5), []

    for _ in range(7):
        before = list(peers)
        door.admit()
        left += [peer.last_activity for peer in before if peer.ended]

    assert left == [1, 2, 3, 4, 5, 1000, 1001]


def test_nobody_makes_room_who_was_heard_again_or_has_a_request_under_way() -> None:
    busy, first, again, last = peers = [Peer(heard) for heard in (1, 2, 3, 4)]
    busy.free = False
    door = Door(peers, most=4)

    door.admit()
    again.last_activity = 5000
    door.admit()

    assert [peer.ended for peer in (busy, first, again, last)] == [False, True, False, True]


def test_where_nobody_can_go_the_newcomer_is_told() -> None:
    peers = [Peer(heard, free=False) for heard in (1, 2)]

    newcomer = Door(peers, most=2).admit()

    assert [type(error) for error in newcomer.refusals] == [Busy]
    assert [peer.last_activity for peer in peers] == [1, 2]
