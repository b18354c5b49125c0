"""That the fast path is here to be tested at all, and what it can be asked for."""

import platform

import pytest

from backends import in_ci
from hadakv_kernels import BackendUnavailable, open_backend
from hadakv_kernels.cpu import CpuBackend, isas


def test_the_native_path_is_built_wherever_nothing_may_be_missing() -> None:
    least = "neon" if platform.machine() in ("arm64", "aarch64") else "baseline"

    assert least in isas() or not in_ci()


def test_the_best_instruction_set_is_taken_unless_one_is_asked_for() -> None:
    best = [*isas(), "numpy"][0]

    assert CpuBackend(3).detail == CpuBackend(3, best).detail
    assert CpuBackend(3).detail.startswith(best)


def test_numpy_can_be_asked_for_where_the_native_path_is_built() -> None:
    assert CpuBackend(isa="numpy").detail == "numpy"


def test_an_instruction_set_this_machine_lacks_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="no altivec on this machine: there is "):
        CpuBackend(isa="altivec")


def test_the_name_cpu_opens_the_cpu_backend() -> None:
    assert isinstance(open_backend("cpu", threads=2), CpuBackend)
