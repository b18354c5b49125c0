"""Properties of the GPU backend on the emulator. They are those of every backend, with fewer examples."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from hadakv_kernels.gpu import GpuBackend
from metal_emulator.executor import Executor, executing
from metal_emulator.launch import Pass
from support.backends import flushes
from unit.kernels.backends import test_properties as properties

# Each new codec of an example is compiled.
EXAMPLES = 40


@pytest.fixture(params=[False, True], ids=["denormals", "denormals flushed"])
def backend(request: pytest.FixtureRequest) -> Iterator[GpuBackend]:
    """The kernels' Metal source on the emulator, with and without flushing denormals as Apple's GPUs do."""
    with executing(Executor(passes=(Pass(flush_denormals=request.param),))):
        yield GpuBackend("metal")


def rerun(given: Callable[[Any], Any], test: Any, examples: int) -> Any:
    """Return the same test with another number of examples."""
    return settings(max_examples=examples)(given(test.hypothesis.inner_test))


def few(given: Callable[[Any], Any], test: Any) -> Any:
    """Return the test with few examples."""
    return rerun(given, test, EXAMPLES)


def many(given: Callable[[Any], Any], test: Any) -> Any:
    """Return the test with many examples, for exhaustive runs."""
    return pytest.mark.exhaustive(rerun(given, test, 300))


INPUT = (properties.ANY_INPUT, properties.test_any_finite_input_is_encoded_as_reference)
STORED = (properties.ANY_STORED, properties.test_any_bytes_and_norms_are_decoded_as_reference)
PARTS = (properties.ANY_PARTS, properties.test_concatenated_and_sliced_parts_equal_the_whole)

test_any_finite_input_is_encoded_as_reference = few(*INPUT)
test_any_bytes_and_norms_are_decoded_as_reference = few(*STORED)
test_concatenated_and_sliced_parts_equal_the_whole = few(*PARTS)
test_many_finite_inputs_are_encoded_as_reference = many(*INPUT)
test_many_bytes_and_norms_are_decoded_as_reference = many(*STORED)
test_many_concatenated_parts_equal_the_whole = many(*PARTS)
test_encode_does_not_change_its_input = properties.test_encode_does_not_change_its_input


def test_backend_flushes_denormals_if_asked(backend: GpuBackend, request: pytest.FixtureRequest) -> None:
    assert flushes(backend) == ("flushed" in request.node.name)
