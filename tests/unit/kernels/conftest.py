"""What every test of the codec may ask for: a backend."""

import pytest

from backends import BACKENDS
from hadakv_kernels import Backend
from hadakv_kernels.cpu import CpuBackend

# What others are compared with; a module that has something to ask of it says so by `WITH_NUMPY = True`.
NUMPY = "cpu-numpy"


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a backend on each.

    Last of all parameters, so that backends follow one another and what is kept of the reference's answer serves all.
    """
    if "backend" in metafunc.fixturenames:
        also = [NUMPY] if getattr(metafunc.module, "WITH_NUMPY", False) else []
        metafunc.parametrize("backend", list(dict.fromkeys([*BACKENDS, *also])), indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn."""
    return CpuBackend(isa="numpy") if request.param == NUMPY else BACKENDS[request.param]()
