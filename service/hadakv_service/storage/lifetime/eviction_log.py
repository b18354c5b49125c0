"""EvictionLog: log lines about sessions deleted to make space."""

import logging
from time import monotonic
from typing import Literal

from hadakv_service.storage.disk.interface import Key, display_keys

log = logging.getLogger(__name__)

# Minimum time between two lines.
INTERVAL_SECONDS = 60.0


class EvictionLog:
    """Sessions deleted to make space. They are logged together, at most once a minute.

    Attributes:
        count: number of sessions deleted so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._pending: dict[str, list[Key]] = {}
        self._next_line = 0.0

    def add(self, key: Key, place: Literal["memory", "disk"]) -> None:
        """Record that a session was deleted to make space in a place."""
        self.count += 1
        self._pending.setdefault(place, []).append(key)

    def report(self, *, now: bool = False) -> None:
        """Log the sessions recorded since the last line, unless that was a short time ago.

        Args:
            now: whether to log them in any case.
        """
        if not self._pending or not (now or monotonic() >= self._next_line):
            return
        self._next_line = monotonic() + INTERVAL_SECONDS
        for place, keys in self._pending.items():
            log.warning("deleted %d sessions to make space %s: %s", len(keys), _PLACES[place], display_keys(keys))
        self._pending.clear()


_PLACES = {"memory": "in memory, see --memory-budget", "disk": "on disk, see --disk-budget"}
