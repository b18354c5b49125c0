"""SteadyClock: Unix seconds that no step of the system's clock changes."""

import time
from collections.abc import Callable

# On macOS CLOCK_MONOTONIC includes the time in which the machine slept. On Linux only CLOCK_BOOTTIME does.
_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed_seconds() -> float:
    """Return monotonic seconds, including the time in which the machine slept."""
    return time.clock_gettime(_CLOCK)


class SteadyClock:
    """Clock that reads the system's time once, and then counts elapsed seconds.

    Ages of sessions thus do not change if the system's clock is set.

    Args:
        wall: returns Unix seconds. Called once.
        elapsed: returns monotonic seconds.
    """

    def __init__(self, wall: Callable[[], float] = time.time, elapsed: Callable[[], float] = elapsed_seconds) -> None:
        self._elapsed = elapsed
        self._start = wall() - elapsed()

    def __call__(self) -> float:
        """Return Unix seconds."""
        return self._start + self._elapsed()
