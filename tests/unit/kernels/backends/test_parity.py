"""Every backend equals the reference to the bit: packed bytes, norms and decoded values."""

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import BITS, DTYPES, HEAD_DIMS, Backend, Codec, CodecSpec, Encoded, Stream, reference, tables
from hadakv_kernels.codec import CHOICES
from support.backends import assert_same_bits, assert_same_encoded, comparable, flushes, of, on_device, on_host
from support.covering import thinned
from support.inputs.hard_vectors import (
    LONGEST,
    SCALES,
    near_smallest_norm,
    on_and_next_to,
    patterns,
    vectors_on_boundaries,
)

OPTIONS = ("rotation", "layout", "codebook", "norm")
CODECS = (HEAD_DIMS, BITS, *(CHOICES[option] for option in OPTIONS))
# Codecs of the test with mixed streams: every 29th of all.
SOME_SPECS = [Codec(bits, *options).at(head_dim) for head_dim, bits, *options in product(*CODECS)][::29]
RANDOM = 1000
COUNTS = (0, 1, 7, 33)


@lru_cache
def vectors(head_dim: int) -> NDArray[np.float32]:
    """Return Gaussian vectors and every pattern at every scale, shuffled: `[vectors, head_dim]`."""
    rng = np.random.default_rng(head_dim)
    scaled = [patterns(head_dim, rng) * scale for scale in SCALES]
    zeros = [np.zeros((1, head_dim)), np.full((1, head_dim), -0.0), np.resize([0.0, -0.0], (1, head_dim))]
    wide = rng.standard_normal((RANDOM, head_dim)) * np.exp(rng.normal(0, 2, (RANDOM, 1)))
    rows = np.vstack([wide, *scaled, *zeros, near_smallest_norm(head_dim)])
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows *= np.minimum(1, LONGEST / length.clip(1))
    return rng.permutation(rows).astype(np.float32)


@lru_cache
def vectors_as(dtype: str, head_dim: int) -> NDArray[Any]:
    """Return `vectors` in another dtype, clipped to the range of float16 if need be."""
    x = vectors(head_dim)
    return (x.clip(-65504, 65504) if dtype == "float16" else x).astype(DTYPES[dtype])


# Tests of one group run on all backends in turn, so these caches compute each result of the reference once.
@lru_cache(maxsize=64)
def encoded_by_reference(spec: CodecSpec, dtype: str = "float32") -> Encoded:
    return reference.encode(vectors_as(dtype, spec.head_dim), spec)


@lru_cache(maxsize=64)
def decoded_by_reference(spec: CodecSpec, *, inverse: bool) -> dict[str, NDArray[Any]]:
    values = reference.decode(encoded_by_reference(spec), spec, inverse=inverse)
    limited = {"float16": values.clip(-65504, 65504)}
    return {dtype: limited.get(dtype, values).astype(DTYPES[dtype]) for dtype in DTYPES}


def group_name(head_dim: int, bits: int) -> str:
    return f"d{head_dim}-{bits}bit"


@pytest.mark.parametrize("rows", thinned((*CODECS, tuple(DTYPES)), strength=3, group=2, name=group_name))
def test_encode_equals_reference(rows: list[Any], backend: Backend) -> None:
    for head_dim, bits, *options, dtype in rows:
        spec = Codec(bits, *options).at(head_dim)
        x = vectors_as(dtype, head_dim)
        same = comparable(backend, x)

        (got,) = backend.encode([Stream(x, spec)])

        assert_same_encoded(of(on_host(backend, got), same), of(encoded_by_reference(spec, dtype), same))
        assert backend.all_finite(got, spec)


@pytest.mark.parametrize("rows", thinned((*CODECS, (True, False)), strength=3, group=2, name=group_name))
def test_decode_equals_reference(rows: list[Any], backend: Backend) -> None:
    for head_dim, bits, *options, inverse in rows:
        spec = Codec(bits, *options).at(head_dim)
        encoded = on_device(backend, encoded_by_reference(spec))
        same = comparable(backend, vectors(head_dim))

        got = {dtype: backend.decode(encoded, spec, dtype, inverse=inverse) for dtype in DTYPES}

        for dtype, expected in decoded_by_reference(spec, inverse=inverse).items():
            assert_same_bits(got[dtype][same], expected[same])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_byte_layout_ignores_bits_above_the_index(head_dim: int, bits: int, backend: Backend) -> None:
    spec = Codec(bits, layout="byte").at(head_dim)
    packed = np.arange(256 * head_dim, dtype=np.uint32).astype(np.uint8).reshape(256, head_dim)
    norms = np.ones((256, spec.norms), np.float32)
    expected = reference.decode(Encoded(packed & np.uint8(2**bits - 1), norms), spec)

    got = backend.decode(on_device(backend, Encoded(packed, norms)), spec, "float32")

    assert_same_bits(got, expected)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_result_does_not_depend_on_the_number_of_vectors(head_dim: int, backend: Backend) -> None:
    spec = Codec(5, norm="unbiased").at(head_dim)
    x, all_encoded = vectors(head_dim), encoded_by_reference(spec)
    all_decoded = decoded_by_reference(spec, inverse=True)["float32"]
    prefixes = [Stream(x[:count], spec) for count in COUNTS]

    got = backend.encode(prefixes)

    for count, encoded in zip(COUNTS, got, strict=True):
        same, first = comparable(backend, x[:count]), Encoded(all_encoded.packed[:count], all_encoded.norms[:count])
        assert_same_encoded(of(on_host(backend, encoded), same), of(first, same))
        assert_same_bits(backend.decode(encoded, spec, "float32")[same], all_decoded[:count][same])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_float16_stream_equals_reference(head_dim: int, dtype: str, backend: Backend) -> None:
    spec = Codec(kind="float16").at(head_dim)
    x = vectors(head_dim).clip(-65280, 65280).astype(DTYPES[dtype])
    expected = reference.encode(x, spec)

    (got,) = backend.encode([Stream(x, spec)])

    assert_same_encoded(on_host(backend, got), expected)
    assert backend.all_finite(got, spec)
    for target in DTYPES:
        assert_same_bits(backend.decode(got, spec, target), reference.decode(expected, spec, target))


@pytest.mark.parametrize("rotation", ["hadamard", "none"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_vectors_are_on_both_sides_of_the_smallest_norm(head_dim: int, rotation: str) -> None:
    spec = Codec(rotation=rotation).at(head_dim)

    norms = encoded_by_reference(spec).norms
    close = norms[np.abs(norms / 1e-10 - 1) < 1e-6]

    assert (close > np.float32(1e-10)).any()
    assert (close <= np.float32(1e-10)).any()


@lru_cache(maxsize=16)
def boundary_vectors(spec: CodecSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return vectors on boundaries, and their scaled values."""
    x = vectors_on_boundaries(spec)
    return x, reference.diagnose(x, spec).scaled


@pytest.mark.parametrize("rows", thinned((HEAD_DIMS, BITS, CHOICES["codebook"]), group=2, name=group_name))
def test_value_on_a_boundary_gets_the_index_below(rows: list[Any], backend: Backend) -> None:
    for head_dim, bits, codebook in rows:
        check_boundaries(Codec(bits, rotation="none", layout="byte", codebook=codebook).at(head_dim), backend)


def check_boundaries(spec: CodecSpec, backend: Backend) -> None:
    """Check that a value on a boundary gets the index below, and the next float the index above."""
    x, scaled = boundary_vectors(spec)

    got = on_host(backend, backend.encode([Stream(x, spec)])[0])

    boundaries = tables.boundaries(spec.codec.bits, spec.codec.codebook)
    assert np.isin(on_and_next_to(boundaries), scaled).all()
    if flushes(backend):
        # The floats next to the boundary at zero are denormals.
        scaled = np.where(np.abs(scaled) < np.finfo(np.float32).tiny, 0, scaled)
    np.testing.assert_array_equal(got.packed, np.searchsorted(boundaries, scaled, side="left"))


def every_finite(dtype: str) -> NDArray[np.generic]:
    """Return all finite values of a 16-bit dtype, in the order of their bits."""
    patterns: NDArray[np.generic] = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])
    with np.errstate(invalid="ignore"):  # signalling NaNs are among the patterns
        return patterns[np.isfinite(patterns)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("codec", [Codec(8, rotation="none"), Codec(8), Codec(kind="float16")], ids=str)
def test_every_16_bit_value_is_encoded_exactly(codec: Codec, dtype: str, backend: Backend) -> None:
    values = every_finite(dtype)
    values = values[np.abs(values.astype(np.float32)) <= (65504 if codec.kind == "float16" else 1e18)]
    x = np.resize(values, (-(-len(values) // 64), 64))
    spec = codec.at(64)

    same = comparable(backend, x)

    (got,) = backend.encode([Stream(x, spec)])

    assert_same_encoded(of(on_host(backend, got), same), of(reference.encode(x, spec), same))


def test_every_float16_is_decoded_to_every_dtype(backend: Backend) -> None:
    spec = Codec(kind="float16").at(512)
    values = every_finite("float16").reshape(-1, 512)
    stored = Encoded(values.view(np.uint8), np.zeros((len(values), 0), np.float32))

    got = {dtype: backend.decode(on_device(backend, stored), spec, dtype) for dtype in DTYPES}

    for dtype, decoded in got.items():
        assert_same_bits(decoded, values.astype(np.float32).astype(DTYPES[dtype]))


def test_float16_rounding_is_to_nearest_even(backend: Backend) -> None:
    spec = Codec(kind="float16").at(64)
    positive = every_finite("float16")[:0x7C00].astype(np.float32)
    halfway = (positive[:-1] + positive[1:]) / 2
    beside = np.concatenate([np.nextafter(halfway, np.float32(0)), halfway, np.nextafter(halfway, np.float32(1e9))])
    x = np.resize(np.concatenate([beside, -beside]), (-(-2 * len(beside) // 64), 64))

    (got,) = backend.encode([Stream(x, spec)])
    stored = on_host(backend, got).packed.view(np.float16).ravel()

    below = np.tile(np.arange(len(halfway), dtype=np.uint16), 3)
    up = np.concatenate([np.zeros(len(halfway)), np.arange(len(halfway)) % 2, np.ones(len(halfway))])
    expected = (below + up).astype(np.uint16)
    assert_same_bits(stored[: len(beside)], expected.view(np.float16))
    assert_same_bits(stored[len(beside) : 2 * len(beside)], (expected | 0x8000).astype(np.uint16).view(np.float16))


@pytest.mark.parametrize("d512_scale", [16.0, 22.627417, 0.3, 1e-30, 1e30])
@pytest.mark.parametrize("norm", CHOICES["norm"])
def test_d512_scale_equals_reference(norm: str, d512_scale: float, backend: Backend) -> None:
    spec = Codec(norm=norm, d512_scale=d512_scale).at(512)
    x = np.random.default_rng(0).standard_normal((200, 512)).astype(np.float32)
    expected = reference.encode(x, spec)

    (got,) = backend.encode([Stream(x, spec)])

    assert_same_encoded(on_host(backend, got), expected)
    for inverse in (True, False):
        assert_same_bits(
            backend.decode(got, spec, "float32", inverse=inverse), reference.decode(expected, spec, inverse=inverse)
        )


def test_nonpositive_projection_keeps_the_exact_norm(backend: Backend) -> None:
    if flushes(backend):
        pytest.skip("the backend flushes the factor 1e-40 to 0")
    # This factor scales every value to 0, whose centroid is negative.
    spec = Codec(rotation="none", norm="unbiased", d512_scale=1e-40).at(512)
    x = np.linspace(1e10, 2e10, 20 * 512, dtype=np.float32).reshape(20, 512)
    exact = reference.encode(x, Codec(rotation="none", norm="exact", d512_scale=1e-40).at(512))
    assert (exact.packed == 0x77).all()

    (got,) = backend.encode([Stream(x, spec)])

    assert_same_encoded(on_host(backend, got), exact)


def test_mixed_streams_in_one_call_equal_reference(backend: Backend) -> None:
    streams = [
        Stream(vectors_as(dtype, spec.head_dim)[: 3 * index].reshape(3, index, spec.head_dim), spec)
        for index, (spec, dtype) in enumerate(zip(SOME_SPECS, np.resize(list(DTYPES), len(SOME_SPECS)), strict=True))
    ]
    streams.append(Stream(vectors(64)[:5], Codec(kind="float16").at(64)))

    got = backend.encode(streams)

    for encoded, (x, spec) in zip(got, streams, strict=True):
        same = comparable(backend, x.reshape(x.size // spec.head_dim, spec.head_dim)).reshape(x.shape[:-1])
        assert_same_encoded(of(on_host(backend, encoded), same), of(reference.encode(x, spec), same))


def test_encode_without_streams_returns_nothing(backend: Backend) -> None:
    assert backend.encode([]) == []
