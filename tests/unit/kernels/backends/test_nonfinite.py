"""NaN, infinity and overflow are detected from the norms, and affect their own vector only.

Decoded float16 values are finite: what does not fit becomes the largest float16.
"""

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import BITS, DTYPES, HEAD_DIMS, Backend, Codec, Encoded, Stream, reference
from hadakv_kernels.codec import CHOICES
from support.backends import assert_same_bits, on_host
from support.covering import thinned

CODECS = [
    *(
        Codec(bits, rotation=rotation, norm=norm)
        for bits, rotation, norm in product(BITS, CHOICES["rotation"], CHOICES["norm"])
    ),
    Codec(kind="float16"),
]
FLOAT16_MAX = 65504
BAD = {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf}


def name(codec: Codec) -> str:
    return codec.kind if codec.kind == "float16" else f"{codec.bits}bit-{codec.rotation}-{codec.norm}"


def one_bad_element_each(bad: float, head_dim: int, dtype: str) -> NDArray[Any]:
    """Return `[head_dim, head_dim]`: vector `i` has the bad value at element `i`."""
    x = np.random.default_rng(7).standard_normal((head_dim, head_dim))
    np.fill_diagonal(x, bad)
    return x.astype(DTYPES[dtype])


def finite_vectors(backend: Backend, encoded: Encoded, codec: Codec, head_dim: int) -> list[int]:
    """Return the indices of the vectors that the backend reports as finite, each checked alone."""
    spec = codec.at(head_dim)
    return [
        i
        for i in range(len(encoded.packed))
        if backend.all_finite(Encoded(encoded.packed[i : i + 1], encoded.norms[i : i + 1]), spec)
    ]


@pytest.mark.parametrize("rows", thinned((HEAD_DIMS, CODECS, tuple(BAD.values())), name="d{}".format))
def test_nonfinite_element_is_detected_at_every_position(rows: list[Any], backend: Backend) -> None:
    for head_dim, codec, bad in rows:
        x = one_bad_element_each(bad, head_dim, "float32")

        (encoded,) = backend.encode([Stream(x, codec.at(head_dim))])

        assert finite_vectors(backend, encoded, codec, head_dim) == []


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("codec", [Codec(), Codec(rotation="none"), Codec(kind="float16")], ids=name)
def test_nonfinite_16_bit_element_is_detected(codec: Codec, dtype: str, bad: float, backend: Backend) -> None:
    x = one_bad_element_each(bad, 128, dtype)

    (encoded,) = backend.encode([Stream(x, codec.at(128))])

    assert finite_vectors(backend, encoded, codec, 128) == []


@pytest.mark.parametrize("rows", thinned((HEAD_DIMS, CODECS, (2e19, 1e30, 3.4e38)), name="d{}".format))
def test_norm_overflow_is_detected(rows: list[Any], backend: Backend) -> None:
    for head_dim, codec, size in rows:
        one = np.ones((3, head_dim), np.float32)
        one[0, 0] = one[1, head_dim // 2] = one[2, -1] = 32 * np.float64(size) if size < 1e38 else size
        every = np.full((1, head_dim), size, np.float32)

        (encoded,) = backend.encode([Stream(np.vstack([one, every, -every]), codec.at(head_dim))])

        assert finite_vectors(backend, encoded, codec, head_dim) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float16_overflow_is_detected(dtype: str, backend: Backend) -> None:
    # 65520 is the smallest float32 that rounds to infinity in float16.
    fits = np.nextafter(np.float32(65520), np.float32(0))
    spec = Codec(kind="float16").at(64)
    x = np.zeros((4, 64), DTYPES[dtype])
    x[0, 5], x[1, 63], x[2, 0] = 65520 if dtype == "float32" else 65536, -1e38, fits if dtype == "float32" else 65280

    (encoded,) = backend.encode([Stream(x, spec)])

    assert finite_vectors(backend, encoded, spec.codec, 64) == [2, 3]


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_nonfinite_vector_does_not_affect_neighbours(head_dim: int, backend: Backend) -> None:
    x = np.random.default_rng(1).standard_normal((31, head_dim)).astype(np.float32)
    bad = x.copy()
    bad[3, 0], bad[4, -1], bad[17, head_dim // 2], bad[30] = np.nan, np.inf, -np.inf, 3e38
    good = [i for i in range(31) if i not in (3, 4, 17, 30)]

    encoded = backend.encode([Stream(bad, codec.at(head_dim)) for codec in CODECS])

    for codec, result in zip(CODECS, encoded, strict=True):
        clean, got = reference.encode(x, codec.at(head_dim)), on_host(backend, result)
        assert finite_vectors(backend, result, codec, head_dim) == good
        assert not backend.all_finite(result, codec.at(head_dim))
        assert_same_bits(got.packed[good], clean.packed[good])
        assert_same_bits(got.norms[good], clean.norms[good])


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000])
@pytest.mark.parametrize("codec", [Codec(), Codec(kind="float16")], ids=name)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_nonfinite_first_or_last_vector_is_detected(head_dim: int, codec: Codec, count: int, backend: Backend) -> None:
    spec = codec.at(head_dim)
    clean = np.ones((count, head_dim), np.float32)
    first, last = clean.copy(), clean.copy()
    first[0, 0] = last[-1, -1] = np.inf

    streams = backend.encode([Stream(x, spec) for x in (clean, first, last)])

    assert [backend.all_finite(encoded, spec) for encoded in streams] == [True, False, False]


def test_empty_streams_are_finite(backend: Backend) -> None:
    specs = [Codec().at(64), Codec(kind="float16").at(64)]

    streams = backend.encode([Stream(np.zeros((0, 64), np.float32), spec) for spec in specs])

    assert all(backend.all_finite(encoded, spec) for encoded, spec in zip(streams, specs, strict=True))


@pytest.mark.parametrize("norm", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_nonfinite_norm_does_not_affect_neighbours(head_dim: int, inverse: bool, norm: float, backend: Backend) -> None:
    spec = Codec(8).at(head_dim)
    x = np.random.default_rng(2).standard_normal((9, head_dim)).astype(np.float32)
    clean = reference.encode(x, spec)
    norms = clean.norms.copy()
    norms[4] = norm

    got = {dtype: backend.decode(Encoded(clean.packed, norms), spec, dtype, inverse=inverse) for dtype in DTYPES}

    for dtype, values in got.items():
        expected = reference.decode(clean, spec, dtype, inverse=inverse)
        assert_same_bits(np.delete(values, 4, axis=0), np.delete(expected, 4, axis=0))


@pytest.mark.parametrize("rotation", ["hadamard", "none"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_value_beyond_float16_is_decoded_as_the_largest(head_dim: int, rotation: str, backend: Backend) -> None:
    rng = np.random.default_rng(head_dim)
    x = rng.standard_normal((33, head_dim)).astype(np.float32) * np.float32(40000)
    x[::3] *= 1e10
    for bits in BITS:
        spec = Codec(bits, rotation=rotation).at(head_dim)
        (encoded,) = backend.encode([Stream(x, spec)])
        for inverse in (True, False):
            exact = reference.decode(on_host(backend, encoded), spec, "float32", inverse=inverse)

            got = backend.decode(encoded, spec, "float16", inverse=inverse)

            assert_same_bits(got, exact.clip(-FLOAT16_MAX, FLOAT16_MAX).astype(np.float16))
            assert np.abs(got).max() == FLOAT16_MAX


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_values_next_to_the_largest_float16(head_dim: int, backend: Backend) -> None:
    # Without a rotation, every element of a vector of one index is its centroid times the norm, and a constant.
    spec = Codec(2, rotation="none", layout="byte").at(head_dim)
    packed = np.full((40, head_dim), 3, np.uint8)
    one = reference.decode(Encoded(packed[:1], np.ones((1, spec.norms), np.float32)), spec)[0, 0]
    wanted = np.float32(65504) + np.arange(-20, 20, dtype=np.float32)
    norms = np.repeat((wanted / one).astype(np.float32)[:, None], spec.norms, axis=1)

    got = backend.decode(Encoded(packed, norms), spec, "float16")

    exact = reference.decode(Encoded(packed, norms), spec)
    assert_same_bits(got, exact.clip(-FLOAT16_MAX, FLOAT16_MAX).astype(np.float16))
    assert (exact > 65520).any()


@pytest.mark.parametrize("norm", [np.nan, np.inf, -np.inf])
def test_infinity_is_limited_and_nan_stays(norm: float, backend: Backend) -> None:
    spec = Codec(8, rotation="none").at(64)
    encoded = reference.encode(np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32), spec)
    norms = np.full_like(encoded.norms, norm)

    got = backend.decode(Encoded(encoded.packed, norms), spec, "float16")

    exact = reference.decode(Encoded(encoded.packed, norms), spec)
    np.testing.assert_array_equal(got, exact.clip(-FLOAT16_MAX, FLOAT16_MAX).astype(np.float16))
    assert np.isnan(got).all() == np.isnan(norm)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes_are_not_limited(dtype: str, backend: Backend) -> None:
    spec = Codec(8).at(128)
    x = np.random.default_rng(4).standard_normal((9, 128)).astype(np.float32) * np.float32(1e15)
    (encoded,) = backend.encode([Stream(x, spec)])

    got = backend.decode(encoded, spec, dtype).astype(np.float32)

    assert np.abs(got).max() > 1e15
    assert DTYPES[dtype] == backend.decode(encoded, spec, dtype).dtype
