"""Which backend is picked, and the bounds it sets to MLX's memory."""

from contextlib import ExitStack
from unittest.mock import patch

import mlx.core as mx
import pytest

from hadakv_kernels import BackendUnavailable, Codec, CodecSpec, UnsupportedShape, open_backend, tables
from hadakv_kernels.gpu import GpuBackend, mlx_kernels
from metal_emulator.executor import executing

MAC = {"device_name": "Apple M4", "max_recommended_working_set_size": 1000, "memory_size": 1500}
NVIDIA = {"device_name": "NVIDIA H200", "total_memory": 3000, "free_memory": 2000}


def test_auto_picks_metal_where_there_is_metal() -> None:
    with executing():
        assert open_backend().name == "metal"


def test_auto_picks_cuda_where_there_is_cuda_alone() -> None:
    with on_a_machine_with("cuda"), patch.object(GpuBackend, "check", lambda _: None):
        assert open_backend().name == "cuda"


def test_auto_picks_the_processor_where_there_is_no_gpu() -> None:
    with on_a_machine_with("nothing"):
        assert open_backend().name == "cpu"


def on_a_machine_with(gpu: str) -> ExitStack:
    replaced = ExitStack()
    replaced.enter_context(patch.object(mx.metal, "is_available", lambda: gpu == "metal"))
    replaced.enter_context(patch.object(mx.cuda, "is_available", lambda: gpu == "cuda"))
    return replaced


def refuse(*_: object, **__: object) -> None:
    raise RuntimeError("no such instruction")


def test_a_gpu_whose_compiler_refuses_the_kernels_leaves_the_work_to_the_processor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with executing(), patch.object(mx.fast, "metal_kernel", lambda *_, **__: refuse):
        assert open_backend().name == "cpu"
        assert "the metal backend does not work here: no such instruction; the CPU does the work" in caplog.text
        with pytest.raises(BackendUnavailable, match="no such instruction"):
            open_backend("metal")


def test_a_gpu_that_cannot_be_asked_what_it_is_leaves_the_work_to_the_processor() -> None:
    with executing(), patch.object(mx, "device_info", refuse):
        assert open_backend().name == "cpu"


def test_a_gpu_that_computes_something_else_is_not_used() -> None:
    with (
        executing(),
        patch.object(mlx_kernels, "constant_inputs", other_constants),
        pytest.raises(BackendUnavailable, match="does not compute here what it should"),
    ):
        open_backend("metal")


def other_constants(spec: CodecSpec) -> tuple[mx.array, mx.array]:
    return mx.array(mlx_kernels.table(spec)[::-1].copy()), mx.array(tables.sign_bits(spec.head_dim))


@pytest.mark.parametrize(("info", "nbytes"), [(MAC, 1000), (NVIDIA, 3000)], ids=["mac", "nvidia"])
def test_a_gpu_holds_what_the_system_says_it_holds(info: dict[str, str | int], nbytes: int) -> None:
    with executing(), patch.object(mx, "device_info", lambda: info):
        backend = open_backend("metal")

    assert (backend.detail, backend.memory_nbytes) == (info["device_name"], nbytes)
    with pytest.raises(
        BackendUnavailable, match=f"holds {nbytes} bytes: a budget of {nbytes - 9} leaves less than the 10"
    ):
        backend.limit_memory(nbytes - 9, working=10)


def test_the_budget_stays_resident_and_what_comes_and_goes_fits_the_device_beside_it() -> None:
    limits: dict[str, int] = {}
    with executing(), patch.object(mx, "device_info", lambda: MAC):
        backend = open_backend("metal")
    with (
        patch.object(mx, "set_memory_limit", lambda nbytes: limits.update(memory=nbytes)),
        patch.object(mx, "set_cache_limit", lambda nbytes: limits.update(cache=nbytes)),
        patch.object(mx, "set_wired_limit", lambda nbytes: limits.update(wired=nbytes)),
    ):
        backend.limit_memory(700, working=200)

    assert limits == {"memory": 1000, "cache": 100, "wired": 900}


def test_more_vectors_than_a_kernel_counts_are_refused() -> None:
    spec = Codec().at(64)

    assert mlx_kernels.grid(mlx_kernels.MAX_ROWS, spec)[0] == mlx_kernels.MAX_THREADGROUPS * mlx_kernels.THREADGROUP
    # The kernel's own counting goes one stride beyond the last vector.
    assert mlx_kernels.MAX_ROWS + mlx_kernels.MAX_THREADGROUPS * mlx_kernels.THREADGROUP // 32 * 8 < 2**32
    with pytest.raises(UnsupportedShape, match="more than the 2147483647 of one launch"):
        mlx_kernels.grid(mlx_kernels.MAX_ROWS + 1, spec)
