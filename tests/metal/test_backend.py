"""Which backend is picked, and the bounds it sets to MLX's memory."""

from unittest.mock import patch

import mlx.core as mx
import pytest

from hadakv_kernels import BackendUnavailable, open_backend
from metal.executor import executing

MAC = {"device_name": "Apple M4", "max_recommended_working_set_size": 1000, "memory_size": 1500}
NVIDIA = {"device_name": "NVIDIA H200", "total_memory": 3000, "free_memory": 2000}


def test_auto_picks_metal_where_there_is_metal() -> None:
    with executing():
        assert open_backend().name == "metal"


def test_auto_picks_cuda_where_there_is_cuda_alone() -> None:
    with patch.object(mx.metal, "is_available", lambda: False), patch.object(mx.cuda, "is_available", lambda: True):
        assert open_backend().name == "cuda"


def test_auto_picks_the_processor_where_there_is_no_gpu() -> None:
    with patch.object(mx.metal, "is_available", lambda: False), patch.object(mx.cuda, "is_available", lambda: False):
        assert open_backend().name == "cpu"


@pytest.mark.parametrize(("info", "nbytes"), [(MAC, 1000), (NVIDIA, 3000)], ids=["mac", "nvidia"])
def test_a_gpu_holds_what_the_system_says_it_holds(info: dict[str, str | int], nbytes: int) -> None:
    with executing(), patch.object(mx, "device_info", lambda: info):
        backend = open_backend("metal")

    assert (backend.detail, backend.memory_nbytes) == (info["device_name"], nbytes)
    with pytest.raises(BackendUnavailable, match=f"{nbytes + 1} bytes are more than the {nbytes}"):
        backend.limit_memory(nbytes + 1)


def test_the_budget_stays_resident_and_what_mlx_keeps_beside_it_fits_the_device() -> None:
    limits: dict[str, int] = {}
    with executing(), patch.object(mx, "device_info", lambda: MAC):
        backend = open_backend("metal")
    with (
        patch.object(mx, "set_memory_limit", lambda nbytes: limits.update(memory=nbytes)),
        patch.object(mx, "set_cache_limit", lambda nbytes: limits.update(cache=nbytes)),
        patch.object(mx, "set_wired_limit", lambda nbytes: limits.update(wired=nbytes)),
    ):
        backend.limit_memory(900)

    assert limits == {"memory": 1000, "cache": 100, "wired": 900}
