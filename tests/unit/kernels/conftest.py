"""The `backend` fixture: runs a test on every backend."""

import pytest

from hadakv_kernels import Backend
from hadakv_kernels.cpu import CpuBackend
from support.backends import BACKENDS

# The NumPy backend equals the reference. Modules that test it too set `WITH_NUMPY = True`.
NUMPY = "cpu-numpy"


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests with a `backend` fixture.

    The backend is the last parameter. So a test runs on all backends in turn, and cached results of the reference are
    used for all of them.
    """
    if "backend" in metafunc.fixturenames:
        also = [NUMPY] if getattr(metafunc.module, "WITH_NUMPY", False) else []
        metafunc.parametrize("backend", list(dict.fromkeys([*BACKENDS, *also])), indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend in turn."""
    return CpuBackend(isa="numpy") if request.param == NUMPY else BACKENDS[request.param]()
