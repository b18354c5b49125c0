"""The service the tests talk to: the real one, in a process of its own."""

from collections.abc import Iterator

import pytest

from hadakv_service.spawn import RunningService, running_service


@pytest.fixture(scope="session")
def server() -> Iterator[RunningService]:
    """A service with ordinary settings; each test uses session ids of its own."""
    with running_service("--memory-budget", "1GiB", "--max-body", "256MiB") as service:
        yield service
