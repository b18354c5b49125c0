"""Wait for what another thread or process does."""

import time
from collections.abc import Callable

POLL_SECONDS = 0.005


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll until a condition is true.

    Args:
        condition: the condition.
        seconds: maximum time to wait.

    Raises:
        AssertionError: it does not become true in time.
    """
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"the condition did not become true within {seconds} seconds"
        time.sleep(POLL_SECONDS)
