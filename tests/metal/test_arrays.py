"""Arrays of the emulated Metal backend behave like those of every backend."""

from collections.abc import Iterator

import pytest

from hadakv_kernels import Backend
from hadakv_kernels.gpu import GpuBackend
from metal_emulator.executor import executing
from unit.kernels.backends.test_arrays import (
    test_concatenate_joins_device_arrays,
    test_to_device_and_back_keeps_the_array,
    test_to_device_copies_the_values,
    test_to_device_keeps_no_reference_to_the_source,
)

__all__ = [
    "test_concatenate_joins_device_arrays",
    "test_to_device_and_back_keeps_the_array",
    "test_to_device_copies_the_values",
    "test_to_device_keeps_no_reference_to_the_source",
]


@pytest.fixture
def backend() -> Iterator[Backend]:
    """The Metal backend on the emulator."""
    with executing():
        yield GpuBackend("metal")
