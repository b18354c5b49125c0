"""A service that accepts small bodies only, and arrays that are larger."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hadakv_client import Client, Session
from hadakv_service.testing import RunningService, running_service
from support.inputs.long_sessions import long_array


@pytest.fixture(scope="session")
def limited() -> Iterator[RunningService]:
    """Run a service with --max-body 1MiB."""
    with running_service("--max-body", "1MiB", "--memory-budget", "256MiB") as service:
        yield service


@pytest.fixture
def client(connect: Callable[..., Any], limited: RunningService) -> Any:
    """Return a client of the service with the small limit."""
    return connect(limited.url)


class Restartable:
    """Service that can be restarted with another limit, on the same port and data directory."""

    def __init__(self, directory: Path) -> None:
        self._flags = ("--data-dir", str(directory), "--disk-budget", "1GiB", "--durability", "ack")
        self._running = ExitStack()
        self.url = self._running.enter_context(running_service(*self._flags, "--max-body", "1MiB")).url

    def restart(self, max_body: str) -> None:
        """Stop the service and start it again."""
        self._running.close()
        port = self.url.rpartition(":")[2]
        self._running.enter_context(running_service(*self._flags, "--max-body", max_body, "--port", port))

    def close(self) -> None:
        """Stop the service."""
        self._running.close()


@pytest.fixture
def restartable(tmp_path: Path) -> Iterator[Restartable]:
    """Run a service with --max-body 1MiB that the test may restart."""
    service = Restartable(tmp_path)
    yield service
    service.close()


class RestartOnce:
    """Progress callback that restarts a service after three parts.

    Attributes:
        calls: number of calls.
    """

    def __init__(self, service: Restartable, max_body: str) -> None:
        self.calls = 0
        self._restart = partial(service.restart, max_body)

    def __call__(self, done: int, total: int) -> None:  # noqa: ARG002 - they are not needed here
        """Count the call."""
        self.calls += 1
        if self.calls == 3:
            self._restart()


@pytest.fixture
def restart_once(restartable: Restartable) -> RestartOnce:
    """Return a progress callback that restarts the service with --max-body 100KiB."""
    return RestartOnce(restartable, "100KiB")


@pytest.fixture
def other(limited: RunningService, session_id: str) -> Iterator[Session]:
    """Return another handle on the session of the test, which callbacks can use."""
    with Client(limited.url) as client:
        yield client.session(session_id)


@pytest.fixture(scope="session")
def long_k() -> Any:
    """Return keys of 10,000 tokens, float16, 2 layers, 1 head, head_dim 64: 2.5 MiB."""
    return long_array("k")


@pytest.fixture(scope="session")
def long_v() -> Any:
    """Return values with the shape of the keys."""
    return long_array("v")
