"""Vectors whose offset in memory does not fit in 32 bits, on a GPU with enough memory."""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from hadakv_kernels import Codec, CodecSpec, Encoded, reference
from hadakv_kernels.gpu import GpuBackend, mlx_kernels
from metal_emulator.proofs.kernel_calls import on_device, on_host
from support.backends import GPUS_HERE, assert_same_bits

ROOM = 48 << 30


def has_room() -> bool:
    return bool(GPUS_HERE) and GpuBackend(GPUS_HERE[0]).memory_nbytes >= ROOM


pytestmark = pytest.mark.skipif(not has_room(), reason="needs a GPU with 48 GiB")

# The period divides no power of two. If an offset loses its upper bits, it points to a different vector.
PERIOD = 65521
TIMES = 513
SOME = 1000


@pytest.fixture
def x() -> Iterator[mx.array]:
    """Float16 array `[rows, 128]` of more than 2**32 elements."""
    some = np.random.default_rng(0).standard_normal((PERIOD, 128)).astype(np.float16)
    x = mx.tile(on_device(some), (TIMES, 1))
    mx.eval(x)
    assert x.size > 2**32
    yield x
    del x
    mx.clear_cache()


def ends(array: mx.array) -> list[np.ndarray]:
    """Return the first and the last vectors."""
    return [on_host(array[:SOME]), on_host(array[-SOME:])]


@pytest.mark.parametrize("spec", [Codec(8).at(128), Codec(kind="float16").at(128)], ids=["packed", "float16"])
def test_vectors_beyond_4_gib_are_encoded_in_place(x: mx.array, spec: CodecSpec) -> None:
    packed, norms, *_ = mlx_kernels.encode(GPUS_HERE[0], x, spec)
    mx.eval(packed, norms)

    assert packed.nbytes > 2**32
    for part, got in zip(ends(x), ends(packed), strict=True):
        assert_same_bits(got, reference.encode(part, spec).packed)
    if spec.norms:
        for part, got in zip(ends(x), ends(norms), strict=True):
            assert_same_bits(got, reference.encode(part, spec).norms)


def test_vectors_beyond_4_gib_are_decoded_in_place(x: mx.array) -> None:
    spec = Codec(8).at(128)
    packed, norms, *_ = mlx_kernels.encode(GPUS_HERE[0], x, spec)
    mx.eval(packed, norms)

    values = mlx_kernels.decode(GPUS_HERE[0], packed, norms, spec, "float16")
    mx.eval(values)

    for part, got in zip(ends(x), ends(values), strict=True):
        encoded = reference.encode(part, spec)
        assert_same_bits(got, reference.decode(Encoded(encoded.packed, encoded.norms), spec, "float16"))
