"""Transfer of arrays to a backend and back."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import Backend
from support.backends import assert_same_bits

BYTES = np.random.default_rng(6).integers(0, 256, (3, 4, 40, 32), np.uint8)
NORMS = np.random.default_rng(7).standard_normal((3, 4, 40, 2)).astype(np.float32)


def misaligned(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only copy of an array that is misaligned by one byte."""
    return np.frombuffer(b"x" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


HOST = {
    "bytes": BYTES,
    "norms": NORMS,
    "one row": BYTES[:1, :1, :1],
    "some tokens": BYTES[:, :, 7:20],
    "every other head": NORMS[:, ::2],
    "axes in another order": NORMS.transpose(1, 0, 2, 3),
    "misaligned": misaligned(NORMS),
    "no tokens": BYTES[:, :, :0],
    "no norms": NORMS[..., :0],
    "more than is small": np.tile(BYTES, (1, 1, 80, 1)),
}


@pytest.mark.parametrize("array", HOST.values(), ids=HOST)
def test_to_device_and_back_keeps_the_array(array: NDArray[Any], backend: Backend) -> None:
    got = backend.to_host(backend.to_device(array))

    assert got.flags.c_contiguous
    assert_same_bits(got, np.ascontiguousarray(array))


def test_to_device_copies_the_values(backend: Backend) -> None:
    buffer = BYTES.copy()

    whole, part = backend.to_device(buffer), backend.to_device(buffer[:, :, 3:9])
    buffer[:] = 0

    assert_same_bits(backend.to_host(whole), BYTES)
    assert_same_bits(backend.to_host(part), np.ascontiguousarray(BYTES[:, :, 3:9]))


def test_to_device_keeps_no_reference_to_the_source(backend: Backend) -> None:
    buffer = bytearray(BYTES.tobytes())

    kept = backend.to_device(np.frombuffer(buffer, np.uint8)[100:200])
    # A bytearray that still has a view cannot shrink.
    buffer.clear()

    assert len(kept) == 100


def test_concatenate_joins_device_arrays(backend: Backend) -> None:
    halves = [backend.to_device(BYTES[:, :, :16]), backend.to_device(BYTES[:, :, 16:])]

    assert_same_bits(backend.to_host(backend.concatenate(halves, 2)), BYTES)
