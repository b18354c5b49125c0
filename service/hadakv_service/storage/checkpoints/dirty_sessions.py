"""DirtySessions: `spill` sessions with changes that are not on disk."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from time import monotonic

from hadakv_service.storage.disk.interface import Key

# Parts of the checkpoint interval: a session that was not changed for the first is written, and any session whose
# oldest change has the age of the second. The rest of the interval is for sessions that wait for others.
IDLE_SHARE, DUE_SHARE = 0.25, 0.75


class DirtySessions:
    """Sessions to checkpoint, by their oldest change that is not on disk and by their last change.

    Args:
        now: returns monotonic seconds.

    Attributes:
        now: returns monotonic seconds.
        oldest: time of the oldest change that a power loss could undo, by `now`; None if there is none. Other threads
            may read it: it is assigned once per change of this object.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self.now = now
        self.oldest: float | None = None
        # Oldest change first, and least recently changed first. Both have the same keys.
        self._since: OrderedDict[Key, float] = OrderedDict()
        self._changed: OrderedDict[Key, float] = OrderedDict()
        # Sessions that are being written, with their oldest change.
        self._in_flight: dict[Key, float] = {}
        # The oldest change that was written without a sync since the last sync.
        self._unsynced: float | None = None

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, key: object) -> bool:
        return key in self._since

    def mark(self, key: Key) -> None:
        """Record a change of a session."""
        now = self.now()
        self._since.setdefault(key, now)
        self._changed[key] = now
        self._changed.move_to_end(key)
        if self.oldest is None:
            self.oldest = now

    def discard(self, key: Key) -> None:
        """Record that a session is gone, or is on disk completely and synced."""
        if self._since.pop(key, None) is not None:
            del self._changed[key]
            self._update()

    def written(self, key: Key) -> None:
        """Record that a session is on disk completely, but may not be synced yet."""
        if (since := self._since.get(key)) is not None:
            self._unsynced = since if self._unsynced is None else min(self._unsynced, since)
            self.discard(key)

    def synced(self) -> None:
        """Record that everything written is synced."""
        if self._unsynced is not None:
            self._unsynced = None
            self._update()

    def needs_sync(self, seconds: float) -> bool:
        """Whether a change that was written without a sync is due."""
        return self._unsynced is not None and self._unsynced <= self.now() - seconds * DUE_SHARE

    def due(self, seconds: float) -> Iterator[Key]:
        """Yield the sessions to write now, at most twice each: overdue ones, then idle ones, then the other due ones.

        The caller must not change the object meanwhile.

        Args:
            seconds: checkpoint interval.
        """
        now = self.now()
        yield from _until(self._since, now - seconds)
        yield from _until(self._changed, now - seconds * IDLE_SHARE)
        yield from _until(self._since, now - seconds * DUE_SHARE)

    def is_overdue(self, seconds: float) -> bool:
        """Whether a change is older than the checkpoint interval."""
        return self.oldest is not None and self.oldest < self.now() - seconds

    def start(self, keys: Collection[Key]) -> None:
        """Record that sessions are being written. Later changes count anew."""
        self._in_flight = {key: self._since.pop(key) for key in keys}
        for key in keys:
            del self._changed[key]
        self._update()

    def end(self, *, written: bool) -> None:
        """Record that the write has ended."""
        if not written:
            for key, since in self._in_flight.items():
                self._since[key] = since
                self._changed.setdefault(key, since)
            self._since, self._changed = _by_time(self._since), _by_time(self._changed)
        self._in_flight = {}
        self._update()

    def _update(self) -> None:
        times = [*self._in_flight.values()]
        if self._since:
            times.append(next(iter(self._since.values())))
        if self._unsynced is not None:
            times.append(self._unsynced)
        self.oldest = min(times, default=None)


def _until(times: OrderedDict[Key, float], moment: float) -> Iterator[Key]:
    for key, time in times.items():
        if time > moment:
            return
        yield key


def _by_time(times: OrderedDict[Key, float]) -> OrderedDict[Key, float]:
    return OrderedDict(sorted(times.items(), key=lambda item: item[1]))
