"""The CPU backend: the native kernels are built, and the instruction set can be chosen."""

import platform

import pytest

from hadakv_kernels import BackendUnavailable, open_backend
from hadakv_kernels.cpu import CpuBackend, isas
from support.backends import in_ci


def test_native_kernels_are_built_in_ci() -> None:
    least = "neon" if platform.machine() in ("arm64", "aarch64") else "baseline"

    assert least in isas() or not in_ci()


def test_cpu_backend_takes_the_fastest_isa_by_default() -> None:
    best = [*isas(), "numpy"][0]

    assert CpuBackend(3).detail == CpuBackend(3, best).detail
    assert CpuBackend(3).detail.startswith(best)


def test_cpu_backend_accepts_isa_numpy() -> None:
    assert CpuBackend(isa="numpy").detail == "numpy"


def test_cpu_backend_rejects_an_unknown_isa() -> None:
    with pytest.raises(BackendUnavailable, match="isa 'altivec' is not available on this machine: choose one of "):
        CpuBackend(isa="altivec")


def test_open_backend_cpu_opens_the_cpu_backend() -> None:
    assert isinstance(open_backend("cpu", threads=2), CpuBackend)
