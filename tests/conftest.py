"""Shared by all tests: the hypothesis profile, and a service in a process of its own."""

import os
import signal
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from hadakv_service.testing import RunningService, running_service
from support import thoroughness
from support.backends import SERVED
from support.services import fork_server

# The same examples on every machine, and no failures because a machine is slow.
settings.register_profile(
    "hadakv",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,  # fixtures keep no state between examples
    ],
)
settings.load_profile("hadakv")

# Nothing is written to disk unless a test sets a data directory.
os.environ["HADAKV_DISK_BUDGET"] = "0"
# Without a disk budget, the service deletes sessions of earlier runs whose ids are used. Leave those of users alone.
os.environ.setdefault("HADAKV_DATA_DIR", os.path.join(tempfile.gettempdir(), "hadakv-tests-without-data"))


def pytest_configure(config: pytest.Config) -> None:
    """Choose between a usual run and an exhaustive one, which `-m ""` asks for. Let Ctrl-C interrupt programs."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Shells start background processes so, and programs that tests interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    thoroughness.is_exhaustive = config.option.markexpr == ""
    if not thoroughness.is_exhaustive:
        fork_server.install()


def pytest_unconfigure() -> None:
    """Stop the process that forks services."""
    fork_server.uninstall()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test marked `every_backend` against the service on each backend.

    With `every_backend(exhaustive=True)` the backends after the first have their turn in `make test-all` only.
    """
    marker = metafunc.definition.get_closest_marker("every_backend")
    if marker and "server" in metafunc.fixturenames:
        first, *others = SERVED
        marks = [pytest.mark.exhaustive] if marker.kwargs.get("exhaustive") else []
        backends = [first, *(pytest.param(name, marks=marks) for name in others)]
        metafunc.parametrize("server", backends, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[RunningService]:
    """Start a service with default settings. Each test uses session ids of its own."""
    program, backend = SERVED[getattr(request, "param", next(iter(SERVED)))]
    # Few tests send many rows. Let the GPU encode them too.
    flags = ("--backend", backend, "--gpu-min-rows", "0", "--memory-budget", "1GiB", "--max-body", "256MiB")
    with running_service(*flags, program=program) as service:
        yield service
