"""Selection of the backend, and the memory limits that it sets in MLX."""

from contextlib import ExitStack
from unittest.mock import patch

import mlx.core as mx
import pytest

from hadakv_kernels import BackendUnavailable, Codec, CodecSpec, UnsupportedShape, open_backend, tables
from hadakv_kernels.gpu import GpuBackend, mlx_kernels
from metal_emulator.executor import executing

MAC = {"device_name": "Apple M4", "max_recommended_working_set_size": 1000, "memory_size": 1500}
NVIDIA = {"device_name": "NVIDIA H200", "total_memory": 3000, "free_memory": 2000}


def test_auto_selects_metal_if_available() -> None:
    with executing():
        assert open_backend(gpu_min_rows=0).name == "metal"


def test_auto_selects_cuda_without_metal() -> None:
    with on_a_machine_with("cuda"), patch.object(GpuBackend, "check", lambda _: None):
        assert open_backend(gpu_min_rows=0).name == "cuda"


def test_auto_selects_cpu_without_a_gpu() -> None:
    with on_a_machine_with("nothing"):
        assert open_backend().name == "cpu"


def on_a_machine_with(gpu: str) -> ExitStack:
    replaced = ExitStack()
    replaced.enter_context(patch.object(mx.metal, "is_available", lambda: gpu == "metal"))
    replaced.enter_context(patch.object(mx.cuda, "is_available", lambda: gpu == "cuda"))
    return replaced


def refuse(*_: object, **__: object) -> None:
    raise RuntimeError("no such instruction")


def test_auto_selects_cpu_if_kernels_do_not_compile(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with executing(), patch.object(mx.fast, "metal_kernel", lambda *_, **__: refuse):
        assert open_backend().name == "cpu"
        assert (
            "the metal backend does not work on this machine: no such instruction; using the CPU instead" in caplog.text
        )
        with pytest.raises(BackendUnavailable, match="no such instruction"):
            open_backend("metal")


def test_auto_selects_cpu_if_device_info_fails() -> None:
    with executing(), patch.object(mx, "device_info", refuse):
        assert open_backend().name == "cpu"


def test_open_backend_rejects_a_gpu_with_wrong_results() -> None:
    with (
        executing(),
        patch.object(mlx_kernels, "constant_inputs", other_constants),
        pytest.raises(BackendUnavailable, match="computes wrong results on this machine"),
    ):
        open_backend("metal")


def other_constants(spec: CodecSpec) -> tuple[mx.array, mx.array]:
    return mx.array(mlx_kernels.table(spec)[::-1].copy()), mx.array(tables.sign_bits(spec.head_dim))


@pytest.mark.parametrize(("info", "nbytes"), [(MAC, 1000), (NVIDIA, 3000)], ids=["mac", "nvidia"])
def test_memory_nbytes_is_what_the_system_reports(info: dict[str, str | int], nbytes: int) -> None:
    with executing(), patch.object(mx, "device_info", lambda: info):
        backend = open_backend("metal", gpu_min_rows=0)

    assert (backend.detail, backend.memory_nbytes) == (info["device_name"], nbytes)
    with pytest.raises(
        BackendUnavailable,
        match=f"has {nbytes} bytes of memory. A memory budget of {nbytes - 9} bytes leaves less than the 10",
    ):
        backend.limit_memory(nbytes - 9, working=10)


def test_limit_memory_sets_the_limits_of_mlx() -> None:
    limits: dict[str, int] = {}
    with executing(), patch.object(mx, "device_info", lambda: MAC):
        backend = open_backend("metal", gpu_min_rows=0)
    with (
        patch.object(mx, "set_memory_limit", lambda nbytes: limits.update(memory=nbytes)),
        patch.object(mx, "set_cache_limit", lambda nbytes: limits.update(cache=nbytes)),
        patch.object(mx, "set_wired_limit", lambda nbytes: limits.update(wired=nbytes)),
    ):
        backend.limit_memory(700, working=200)

    assert limits == {"memory": 1000, "cache": 100, "wired": 900}


def test_grid_rejects_too_many_vectors() -> None:
    spec = Codec().at(64)

    assert mlx_kernels.grid(mlx_kernels.MAX_ROWS, spec)[0] == mlx_kernels.MAX_THREADGROUPS * mlx_kernels.THREADGROUP
    # The kernel's row counter goes one stride past the last vector.
    assert mlx_kernels.MAX_ROWS + mlx_kernels.MAX_THREADGROUPS * mlx_kernels.THREADGROUP // 32 * 8 < 2**32
    with pytest.raises(UnsupportedShape, match="exceed the maximum of 2147483647 per launch"):
        mlx_kernels.grid(mlx_kernels.MAX_ROWS + 1, spec)
