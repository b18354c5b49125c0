"""The properties every backend has, of the GPU backend on the executor."""

from collections.abc import Iterator

import pytest

from backends import flushes
from hadakv_kernels.gpu import GpuBackend
from metal_emulator.executor import Executor, executing
from metal_emulator.launch import Pass
from unit.kernels.backends.test_properties import (
    test_any_bytes_and_norms_are_decoded_as_reference,
    test_any_finite_input_is_encoded_as_reference,
    test_concatenated_and_sliced_parts_equal_the_whole,
    test_encode_does_not_change_its_input,
)

__all__ = [
    "test_any_bytes_and_norms_are_decoded_as_reference",
    "test_any_finite_input_is_encoded_as_reference",
    "test_concatenated_and_sliced_parts_equal_the_whole",
    "test_encode_does_not_change_its_input",
]


@pytest.fixture(params=[False, True], ids=["denormals", "denormals flushed"])
def backend(request: pytest.FixtureRequest) -> Iterator[GpuBackend]:
    """The kernels' Metal source, executed, also as Apple's GPUs execute it."""
    with executing(Executor(passes=(Pass(flush_denormals=request.param),))):
        yield GpuBackend("metal")


def test_backend_flushes_denormals_if_asked(backend: GpuBackend, request: pytest.FixtureRequest) -> None:
    assert flushes(backend) == ("flushed" in request.node.name)
