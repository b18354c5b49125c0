"""Every backend computes what the reference computes: the same packed bytes, norms and decoded values, to the bit."""

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends import assert_same_bits, assert_same_encoded, comparable, flushes, of, on_device, on_host
from hadakv_kernels import BITS, DTYPES, HEAD_DIMS, Backend, Codec, CodecSpec, Encoded, Stream, reference, tables
from hadakv_kernels.codec import CHOICES

OPTIONS = ("rotation", "layout", "codebook", "norm")
SPECS = [
    Codec(bits, rotation, layout, codebook, norm).at(head_dim)
    for head_dim, bits in product(HEAD_DIMS, BITS)
    for rotation, layout, codebook, norm in product(*(CHOICES[option] for option in OPTIONS))
]
RANDOM = 1000
COUNTS = (0, 1, 7, 33)
SCALES = (3e-42, 1e-38, 1e-30, 1e-20, 1e-11, 1e-10, 3e-6, 1.0, 1e4, 65000.0, 1e18)
# The largest length whose square, in whatever order it is summed, stays below float32's 3.4e38.
LONGEST = 1.6e19


def name(spec: CodecSpec) -> str:
    return "-".join([f"d{spec.head_dim}", f"{spec.codec.bits}bit", *(getattr(spec.codec, o) for o in OPTIONS)])


def patterns(head_dim: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Shapes a vector can have, largest element near 1: `[patterns, head_dim]`."""
    gaussian = rng.standard_normal((3, head_dim))
    heavy = rng.standard_t(1.5, (3, head_dim))
    outliers = gaussian / 50
    outliers[:, rng.integers(0, head_dim, 3)] = 1.0
    sparse = np.where(rng.random((3, head_dim)) < 0.05, gaussian, -0.0)
    one_hot = np.eye(head_dim)[[0, 1, head_dim // 2 - 1, head_dim // 2, head_dim - 1]]
    constant, alternating = np.ones(head_dim), np.resize([1.0, -1.0], head_dim)
    halves = np.repeat([1.0, 1e-12], head_dim // 2)
    ramp = np.linspace(-1, 1, head_dim)
    shapes = np.vstack([gaussian, heavy, outliers, sparse, one_hot, constant, -constant, alternating, halves, ramp])
    return np.divide(shapes, np.abs(shapes).max(axis=1, keepdims=True).clip(1e-300))


def around_the_smallest_norm(head_dim: int) -> NDArray[np.float64]:
    """One-hot vectors whose norm lies within a few ulp of 1e-10, for every definition of the norm."""
    steps = 1 + np.arange(-8, 9) * 2.0**-24
    # D = 512 has the RMS of a block: that of the one element, or of its spread over the whole vector.
    definitions = (1.0,) if head_dim < 512 else (16.0, np.sqrt(512))
    sizes = np.concatenate([1e-10 * factor * steps for factor in definitions])
    return np.outer(sizes, np.eye(head_dim)[3])


@lru_cache
def vectors(head_dim: int) -> NDArray[np.float32]:
    """Gaussian vectors, and every pattern at every scale, shuffled: `[vectors, head_dim]`."""
    rng = np.random.default_rng(head_dim)
    scaled = [patterns(head_dim, rng) * scale for scale in SCALES]
    zeros = [np.zeros((1, head_dim)), np.full((1, head_dim), -0.0), np.resize([0.0, -0.0], (1, head_dim))]
    wide = rng.standard_normal((RANDOM, head_dim)) * np.exp(rng.normal(0, 2, (RANDOM, 1)))
    rows = np.vstack([wide, *scaled, *zeros, around_the_smallest_norm(head_dim)])
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows *= np.minimum(1, LONGEST / length.clip(1))
    return rng.permutation(rows).astype(np.float32)


@lru_cache
def vectors_as(dtype: str, head_dim: int) -> NDArray[Any]:
    """The same in another dtype, what lies beyond float16 at its edge."""
    x = vectors(head_dim)
    return (x.clip(-65504, 65504) if dtype == "float16" else x).astype(DTYPES[dtype])


# Backends follow one another in the order of tests, so each answer of the reference is worked out once.
@lru_cache(maxsize=2)
def encoded_by_reference(spec: CodecSpec, dtype: str = "float32") -> Encoded:
    return reference.encode(vectors_as(dtype, spec.head_dim), spec)


@lru_cache(maxsize=2)
def decoded_by_reference(spec: CodecSpec, *, inverse: bool) -> dict[str, NDArray[Any]]:
    values = reference.decode(encoded_by_reference(spec), spec, inverse=inverse)
    with np.errstate(over="ignore"):
        return {dtype: values.astype(DTYPES[dtype]) for dtype in DTYPES}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_encode_equals_reference(spec: CodecSpec, dtype: str, backend: Backend) -> None:
    x = vectors_as(dtype, spec.head_dim)
    expected = encoded_by_reference(spec, dtype)
    same = comparable(backend, x)

    (got,) = backend.encode([Stream(x, spec)])

    assert_same_encoded(of(on_host(backend, got), same), of(expected, same))
    assert backend.all_finite(got, spec)


@pytest.mark.parametrize("inverse", [True, False], ids=["values", "rotated"])
@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_decode_equals_reference(spec: CodecSpec, inverse: bool, backend: Backend) -> None:
    encoded = on_device(backend, encoded_by_reference(spec))
    expected = decoded_by_reference(spec, inverse=inverse)
    same = comparable(backend, vectors(spec.head_dim))

    got = {dtype: backend.decode(encoded, spec, dtype, inverse=inverse) for dtype in DTYPES}

    for dtype, values in got.items():
        assert_same_bits(values[same], expected[dtype][same])


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


def on_and_beside(boundaries: NDArray[np.float32]) -> NDArray[np.float32]:
    """The float below each boundary, the boundary, and the float above it: `[3, boundaries]`."""
    below, above = np.float32(-np.inf), np.float32(np.inf)
    return np.stack([np.nextafter(boundaries, below), boundaries, np.nextafter(boundaries, above)])


def vectors_on_boundaries(spec: CodecSpec) -> NDArray[np.float32]:
    """Vectors whose scaled values are the boundaries and the floats beside them: `[vectors, head_dim]`.

    Values that already have unit variance are scaled by 1. A few boundaries at a time are filled up to unit
    variance with one constant, and the last element varies until the norm comes out exactly.
    """
    values = on_and_beside(tables.boundaries(spec.codec.bits, spec.codec.codebook)).ravel()
    rows = []
    for some in np.array_split(values, -(-len(values) * 32 // spec.block_dim)):
        rest = spec.block_dim - len(some)
        fill = np.sqrt((spec.block_dim - np.square(some, dtype=np.float64).sum()) / rest)
        block = np.append(some, np.full(rest, fill))
        for step in range(-16, 16):
            block[-1] = fill + step * spec.block_dim * 2.0**-25
            rows.append(np.tile(block, spec.blocks))
    return np.array(rows, np.float32)


@pytest.mark.parametrize("codebook", CHOICES["codebook"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_value_on_a_boundary_gets_the_index_below(
    head_dim: int, bits: int, codebook: str, backend: Backend
) -> None:
    spec = Codec(bits, rotation="none", layout="byte", codebook=codebook).at(head_dim)
    x = vectors_on_boundaries(spec)
    scaled = reference.diagnose(x, spec).scaled

    got = on_host(backend, backend.encode([Stream(x, spec)])[0])

    boundaries = tables.boundaries(bits, codebook)
    assert np.isin(on_and_beside(boundaries), scaled).all()
    if flushes(backend):
        # What is beside the boundary at zero is a denormal.
        scaled = np.where(np.abs(scaled) < np.finfo(np.float32).tiny, 0, scaled)
    np.testing.assert_array_equal(got.packed, np.searchsorted(boundaries, scaled, side="left"))


def every_finite(dtype: str) -> NDArray[np.generic]:
    """All finite values of a 16-bit dtype, in the order of their bits."""
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
        pytest.skip("takes a factor of 1e-40 for 0")
    # So small a factor takes every scaled value to 0, whose centroid is negative.
    spec = Codec(rotation="none", norm="unbiased", d512_scale=1e-40).at(512)
    x = np.linspace(1e10, 2e10, 20 * 512, dtype=np.float32).reshape(20, 512)
    exact = reference.encode(x, Codec(rotation="none", norm="exact", d512_scale=1e-40).at(512))
    assert (exact.packed == 0x77).all()

    (got,) = backend.encode([Stream(x, spec)])

    assert_same_encoded(on_host(backend, got), exact)


def test_mixed_streams_in_one_call_equal_reference(backend: Backend) -> None:
    streams = [
        Stream(vectors_as(dtype, spec.head_dim)[: 3 * index].reshape(3, index, spec.head_dim), spec)
        for index, (spec, dtype) in enumerate(zip(SPECS[::29], np.resize(list(DTYPES), len(SPECS)), strict=False))
    ]
    streams.append(Stream(vectors(64)[:5], Codec(kind="float16").at(64)))

    got = backend.encode(streams)

    for encoded, (x, spec) in zip(got, streams, strict=True):
        same = comparable(backend, x.reshape(x.size // spec.head_dim, spec.head_dim)).reshape(x.shape[:-1])
        assert_same_encoded(of(on_host(backend, encoded), same), of(reference.encode(x, spec), same))


def test_encode_without_streams_returns_nothing(backend: Backend) -> None:
    assert backend.encode([]) == []
