"""What every test of the codec may ask for: a backend."""

import pytest

from backends import BACKENDS
from hadakv_kernels import Backend


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a backend on each.

    Last of all parameters, so that backends follow one another and what is kept of the reference's answer serves all.
    """
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", list(BACKENDS), indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn."""
    return BACKENDS[request.param]()
