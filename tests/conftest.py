"""What all tests share: how hypothesis looks for examples, and the service, the real one in a process of its own."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from hadakv_service.spawn import RunningService, running_service

# The same examples on every machine, however slow it is: nothing here may fail for the time it took.
settings.register_profile(
    "hadakv",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,  # what fixtures give keeps nothing between examples
    ],
)
settings.load_profile("hadakv")


@pytest.fixture(scope="session")
def server() -> Iterator[RunningService]:
    """A service with ordinary settings; each test uses session ids of its own."""
    with running_service("--memory-budget", "1GiB", "--max-body", "256MiB") as service:
        yield service
