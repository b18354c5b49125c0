"""Fixtures for tests over HTTP: clients, a new session id, and a session with tokens."""

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from hadakv_service.testing import RunningService, running_service
from support.assertions import K, V
from support.contract import Caller
from support.inputs.arrays import TTL_SECONDS
from support.services.program import WITHOUT_MAINTENANCE


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of limits that uvicorn's own protocol does not have."""
    if os.environ.get("HADAKV_HTTP_PROTOCOL") == "uvicorn" and item.get_closest_marker("hadakv_protocol"):
        pytest.skip("needs hadakv's own HTTP protocol")


@pytest.fixture(scope="session")
def caller(server: RunningService) -> Iterator[Caller]:
    """Return a client of the shared service."""
    with Caller(server.url) as caller:
        yield caller


@pytest.fixture(scope="session")
def alone() -> Iterator[Caller]:
    """Return a client of a service that only tests with this fixture use, where sessions have a TTL of an hour."""
    with running_service("--ttl-seconds", str(TTL_SECONDS)) as service, Caller(service.url) as caller:
        yield caller


@pytest.fixture(scope="session")
def watched() -> Iterator[RunningService]:
    """Start a service for tests of metrics. No other test changes its metrics."""
    with running_service("--memory-budget", "1GiB", "--max-body", "256MiB", program=WITHOUT_MAINTENANCE) as service:
        yield service


@pytest.fixture
def asking(watched: RunningService) -> Iterator[Caller]:
    """Return a client of the service for tests of metrics."""
    with Caller(watched.url) as caller:
        yield caller


@pytest.fixture
def session() -> str:
    """Return a new session id."""
    return uuid4().hex


@pytest.fixture
def kept(caller: Caller, session: str) -> str:
    """Return the id of a session with tokens."""
    assert caller.append(session, K, V).status == 201
    return session
