"""What every test of the service may ask for: a caller, and a session id nobody else uses."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from contract import Caller
from hadakv_service.spawn import RunningService


@pytest.fixture(scope="session")
def caller(server: RunningService) -> Iterator[Caller]:
    """A client of the shared service."""
    with Caller(server.url) as caller:
        yield caller


@pytest.fixture
def session() -> str:
    """A session id of this test's own."""
    return uuid4().hex
