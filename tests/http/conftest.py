"""Fixtures for tests over HTTP: clients, a fresh session id, and a session with tokens."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from hadakv_service.testing import RunningService, running_service
from support.arrays import TTL_SECONDS
from support.assertions import K, V
from support.contract import Caller


@pytest.fixture(scope="session")
def caller(server: RunningService) -> Iterator[Caller]:
    """Client of the shared service."""
    with Caller(server.url) as caller:
        yield caller


@pytest.fixture(scope="session")
def alone() -> Iterator[Caller]:
    """Client of a service whose used bytes the shared tests do not change, with a TTL of one hour."""
    with running_service("--ttl-seconds", str(TTL_SECONDS)) as service, Caller(service.url) as caller:
        yield caller


@pytest.fixture(scope="session")
def watched() -> Iterator[RunningService]:
    """Service for tests of metrics, which other tests do not change."""
    with running_service("--memory-budget", "1GiB", "--max-body", "256MiB") as service:
        yield service


@pytest.fixture
def asking(watched: RunningService) -> Iterator[Caller]:
    """Client of the service `watched`."""
    with Caller(watched.url) as caller:
        yield caller


@pytest.fixture
def session() -> str:
    """Return a session id that no other test uses."""
    return uuid4().hex


@pytest.fixture
def kept(caller: Caller, session: str) -> str:
    """Create a session with tokens. Return its id."""
    assert caller.append(session, K, V).status == 201
    return session
