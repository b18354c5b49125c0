"""ConnectionMonitor: which connection is closed when there are too many."""

import asyncio
from dataclasses import dataclass, field
from itertools import count

from hadakv_service.errors import Busy, ServiceError
from hadakv_service.server.connection_monitor import ConnectionMonitor
from hadakv_service.server.timeouts import Limits


@dataclass(eq=False)
class Peer:
    """A connection, as the monitor sees one."""

    last_activity: float
    idle: bool = True
    closed: bool = False
    rejections: list[ServiceError] = field(default_factory=list)

    def is_idle(self) -> bool:
        return self.idle and not self.closed

    def check_timeouts(self, now: float) -> None:
        """Do nothing: no timeout has expired."""

    def close(self) -> None:
        self.closed = True

    def reject(self, error: ServiceError) -> None:
        self.rejections.append(error)


class Newcomers:
    """New connections, one after another, each with a later activity than all before."""

    def __init__(self, peers: list[Peer], max_connections: int) -> None:
        self._peers = peers
        loop = asyncio.new_event_loop()
        self._monitor = ConnectionMonitor(peers, Limits(1, max_connections, 1, 1, 1, 1), loop)
        self._times = count(1000)
        loop.close()

    def admit(self) -> Peer:
        newcomer = Peer(next(self._times))
        self._peers.append(newcomer)
        self._monitor.admit(newcomer)
        self._peers[:] = [peer for peer in self._peers if not (peer.closed or peer.rejections)]
        return newcomer


def test_connection_below_the_limit_closes_none() -> None:
    peers = [Peer(last_activity) for last_activity in (3, 1, 2)]
    newcomers = Newcomers(peers, max_connections=5)

    newcomers.admit()
    newcomers.admit()

    assert len(peers) == 5


def test_connection_idle_for_longest_is_closed() -> None:
    peers = [Peer(last_activity) for last_activity in (3, 1, 5, 2, 4)]
    newcomers, closed = Newcomers(peers, max_connections=5), []

    for _ in range(7):
        before = list(peers)
        newcomers.admit()
        closed += [peer.last_activity for peer in before if peer.closed]

    assert closed == [1, 2, 3, 4, 5, 1000, 1001]


def test_active_or_busy_connection_is_not_closed() -> None:
    busy, first, active, last = peers = [Peer(last_activity) for last_activity in (1, 2, 3, 4)]
    busy.idle = False
    newcomers = Newcomers(peers, max_connections=4)

    newcomers.admit()
    active.last_activity = 5000
    newcomers.admit()

    assert [peer.closed for peer in (busy, first, active, last)] == [False, True, False, True]


def test_newcomer_is_rejected_if_all_are_busy() -> None:
    peers = [Peer(last_activity, idle=False) for last_activity in (1, 2)]

    newcomer = Newcomers(peers, max_connections=2).admit()

    assert [type(error) for error in newcomer.rejections] == [Busy]
    assert [peer.last_activity for peer in peers] == [1, 2]
