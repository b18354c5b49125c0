"""What every backend's arrays must do, on the Metal source's backend."""

from collections.abc import Iterator

import pytest

from hadakv_kernels import Backend
from hadakv_kernels.gpu import GpuBackend
from metal_emulator.executor import executing
from unit.kernels.backends.test_arrays import (
    test_an_array_comes_back_from_the_device_as_it_was,
    test_arrays_on_the_device_are_joined,
    test_what_is_on_the_device_does_not_change_with_what_it_was_made_of,
    test_what_is_on_the_device_does_not_keep_what_it_was_made_of,
)

__all__ = [
    "test_an_array_comes_back_from_the_device_as_it_was",
    "test_arrays_on_the_device_are_joined",
    "test_what_is_on_the_device_does_not_change_with_what_it_was_made_of",
    "test_what_is_on_the_device_does_not_keep_what_it_was_made_of",
]


@pytest.fixture
def backend() -> Iterator[Backend]:
    """MLX's arrays, without a GPU."""
    with executing():
        yield GpuBackend("metal")
