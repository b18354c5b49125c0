"""What a backend refuses, before it touches anything."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import (
    HEAD_DIMS,
    Backend,
    BackendUnavailable,
    Codec,
    Encoded,
    Stream,
    UnsupportedDtype,
    UnsupportedShape,
    open_backend,
)

CODECS = pytest.mark.parametrize("codec", [Codec(), Codec(kind="float16")], ids=["quantized", "float16"])


@CODECS
@pytest.mark.parametrize("dtype", ["float64", "int8", "uint8", "int32", "complex64", "bool", ">f4", ">f2", "S4"])
def test_another_dtype_is_refused(dtype: str, codec: Codec, backend: Backend) -> None:
    x = np.zeros((2, 64), dtype)

    with pytest.raises(UnsupportedDtype, match="dtype must be one of float32, float16, bfloat16, not "):
        backend.encode([Stream(x, codec.at(64))])


@CODECS
@pytest.mark.parametrize(
    "x", [np.zeros((2, 63), np.float32), np.zeros((64, 2), np.float32), np.zeros(0, np.float32), np.float32(1)]
)
def test_another_last_axis_is_refused(x: NDArray[Any], codec: Codec, backend: Backend) -> None:
    with pytest.raises(UnsupportedShape, match="the last axis must have 64 elements, the shape is"):
        backend.encode([Stream(np.asarray(x), codec.at(64))])


def test_diagnosing_refuses_what_encoding_refuses(backend: Backend) -> None:
    with pytest.raises(UnsupportedDtype):
        backend.diagnose(np.zeros((2, 64)), Codec().at(64))
    with pytest.raises(UnsupportedShape):
        backend.diagnose(np.zeros((2, 64), np.float32), Codec().at(128))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("wrong", ["a byte less", "a byte more", "too few norms", "too many norms", "fewer rows"])
def test_stored_vectors_that_do_not_fit_the_codec_are_refused(wrong: str, head_dim: int, backend: Backend) -> None:
    spec = Codec(5).at(head_dim)
    rows = 5 if wrong == "fewer rows" else 6
    row_bytes = spec.row_bytes + {"a byte less": -1, "a byte more": 1}.get(wrong, 0)
    norms = 6 + {"too few norms": -1, "too many norms": 1}.get(wrong, 0)
    stored = Encoded(np.zeros((rows, row_bytes), np.uint8), np.ones((norms, spec.norms), np.float32))

    with pytest.raises(ValueError, match=r"norms|packed|reshape|broadcast"):
        backend.decode(stored, spec, "float32")


def test_there_is_no_backend_of_another_name() -> None:
    with pytest.raises(BackendUnavailable, match="no backend named 'abacus'"):
        open_backend("abacus")
