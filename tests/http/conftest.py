"""What tests of the service may ask for: callers, a session id nobody else uses, and a session that holds something."""

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from hadakv_service.testing import RunningService, running_service
from support.arrays import TTL_SECONDS
from support.assertions import K, V
from support.contract import Caller


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of limits that uvicorn's own protocol does not have."""
    if os.environ.get("HADAKV_HTTP_PROTOCOL") == "uvicorn" and item.get_closest_marker("hadakv_protocol"):
        pytest.skip("needs hadakv's own HTTP protocol")


@pytest.fixture(scope="session")
def caller(server: RunningService) -> Iterator[Caller]:
    """A client of the shared service."""
    with Caller(server.url) as caller:
        yield caller


@pytest.fixture(scope="session")
def alone() -> Iterator[Caller]:
    """A client of a service whose bytes nobody else counts, where sessions live for an hour."""
    with running_service("--ttl-seconds", str(TTL_SECONDS)) as service, Caller(service.url) as caller:
        yield caller


@pytest.fixture(scope="session")
def watched() -> Iterator[RunningService]:
    """A service whose metrics nobody else moves."""
    with running_service("--memory-budget", "1GiB", "--max-body", "256MiB") as service:
        yield service


@pytest.fixture
def asking(watched: RunningService) -> Iterator[Caller]:
    """A client of that service."""
    with Caller(watched.url) as caller:
        yield caller


@pytest.fixture
def session() -> str:
    """A session id of this test's own."""
    return uuid4().hex


@pytest.fixture
def kept(caller: Caller, session: str) -> str:
    """A session that holds something."""
    assert caller.append(session, K, V).status == 201
    return session
