"""Parts of the reference, compared with independent computations."""

import math
from itertools import pairwise, product

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import BITS, HEAD_DIMS, Codec, Encoded, reference, tables
from hadakv_kernels.codec import CHOICES

QUANTIZERS = list(product(BITS, CHOICES["codebook"]))
LLOYD_MAX_MSE = {2: 0.11748, 3: 0.034548, 4: 0.009501, 5: 0.0025047, 6: 0.00064424, 8: 0.00004119}


def hadamard_matrix(head_dim: int) -> NDArray[np.float64]:
    """Natural order: the entry at (i, j) is -1 to the number of ones that i and j have in common."""
    common = np.bitwise_count(np.arange(head_dim)[:, None] & np.arange(head_dim))
    return np.where(common % 2, -1.0, 1.0)


def density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi) if math.isfinite(x) else 0.0


def probability(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


@pytest.mark.parametrize(("bits", "codebook"), QUANTIZERS)
def test_boundaries_lie_between_centroids(bits: int, codebook: str) -> None:
    centroids, boundaries = tables.centroids(bits, codebook), tables.boundaries(bits, codebook)

    assert centroids.dtype == boundaries.dtype == np.float32
    assert (len(centroids), len(boundaries)) == (2**bits, 2**bits - 1)
    assert (centroids[:-1] < boundaries).all()
    assert (boundaries < centroids[1:]).all()


@pytest.mark.parametrize(("bits", "codebook"), QUANTIZERS)
def test_tables_are_symmetric(bits: int, codebook: str) -> None:
    centroids, boundaries = tables.centroids(bits, codebook), tables.boundaries(bits, codebook)

    np.testing.assert_array_equal(centroids, -centroids[::-1])
    np.testing.assert_array_equal(boundaries, -boundaries[::-1])
    assert boundaries[len(boundaries) // 2] == 0


@pytest.mark.parametrize("bits", BITS)
def test_lloyd_max_tables_are_converged(bits: int) -> None:
    centroids = tables.centroids(bits, "lloyd-max").astype(np.float64)
    edges = [-math.inf, *tables.boundaries(bits, "lloyd-max").astype(np.float64), math.inf]

    masses = np.array([probability(b) - probability(a) for a, b in pairwise(edges)])
    moments = np.array([density(a) - density(b) for a, b in pairwise(edges)])

    # Each centroid is the mean of its cell, each boundary halfway between two centroids.
    np.testing.assert_allclose(centroids, moments / masses, rtol=0, atol=2e-6)
    np.testing.assert_allclose(edges[1:-1], (centroids[:-1] + centroids[1:]) / 2, rtol=0, atol=2e-6)
    mean_squared_error = 1 - 2 * (centroids * moments).sum() + (centroids**2 * masses).sum()
    assert mean_squared_error == pytest.approx(LLOYD_MAX_MSE[bits], rel=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_mlx_native_tables_differ_above_3_bits_only(bits: int) -> None:
    same = np.array_equal(tables.centroids(bits, "mlx-native"), tables.centroids(bits, "lloyd-max"))

    assert same == (bits in (2, 3))


def test_tables_are_read_only() -> None:
    for table in (tables.centroids(4, "mlx-native"), tables.boundaries(4, "mlx-native"), tables.signs(64)):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_signs_are_little_endian_bits(head_dim: int) -> None:
    bits, signs = tables.sign_bits(head_dim), tables.signs(head_dim)

    assert bits.shape == (head_dim // 8,)
    assert signs.tolist() == [-1.0 if bits[j >> 3] >> (j & 7) & 1 else 1.0 for j in range(head_dim)]
    assert abs(signs.sum()) < 4 * math.sqrt(head_dim)


def test_shorter_vectors_use_the_first_signs() -> None:
    for head_dim in HEAD_DIMS:
        np.testing.assert_array_equal(tables.signs(head_dim), tables.signs(512)[:head_dim])


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_transform_equals_the_hadamard_matrix(head_dim: int) -> None:
    # Small integers stay exact in float32, so the order of additions does not show.
    y = np.random.default_rng(0).integers(-99, 100, (20, head_dim)).astype(np.float32)

    np.testing.assert_array_equal(reference.transform(y), y @ hadamard_matrix(head_dim))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_transform_twice_multiplies_by_head_dim(head_dim: int) -> None:
    y = np.random.default_rng(0).integers(-99, 100, (20, head_dim)).astype(np.float32)

    np.testing.assert_array_equal(reference.transform(reference.transform(y)), y * head_dim)


def test_butterflies_start_at_distance_one() -> None:
    # 1 is lost beside 2**24, so what survives tells which pairs were added first.
    y = np.zeros((1, 64), np.float32)
    y[0, :4] = [2**24, 1, 1, 1]

    transformed = reference.transform(y)

    assert transformed[0, 0] == np.float32(2**24) + np.float32(2)
    assert transformed[0, 1] == 2**24 - 1


def test_block_sums_add_lanes_first_then_pairs() -> None:
    # Lane 0 owns elements 0 to 3 of 128: each 1 is lost beside 2**24 there, the two of lane 1 together are not.
    terms = np.zeros((2, 128), np.float32)
    terms[0, :4] = [2**24, 1, 1, 1]
    terms[1, [0, 4, 5]] = [2**24, 1, 1]

    sums = reference.block_sums(terms, Codec().at(128))

    assert sums.tolist() == [[2**24], [2**24 + 2]]


def test_block_sums_keep_the_halves_of_512_apart() -> None:
    terms = np.arange(512, dtype=np.float32)[None]

    assert reference.block_sums(terms, Codec().at(512)).tolist() == [[255 * 128, 255 * 128 + 256 * 256]]


def test_norm_is_l2_or_block_rms_at_512() -> None:
    short = np.zeros((1, 256), np.float32)
    short[0, [3, 200]] = 3, 4
    long = np.repeat(np.array([2, 5], np.float32), 256)[None]

    assert reference.encode(short, Codec(rotation="none").at(256)).norms.tolist() == [[5.0]]
    assert reference.encode(long, Codec(rotation="none").at(512)).norms.tolist() == [[2.0, 5.0]]


@pytest.mark.parametrize(
    ("bits", "packed"),
    [
        # Element i is in bits [i * bits, (i + 1) * bits) of the stream; a byte's lowest bit comes first.
        (2, [0b00_11_10_01, 0b00_11_10_01]),
        (3, [0b11_010_001, 0b0_101_100_0, 0b000_111_11]),
        (4, [0x21, 0x43, 0x65, 0x07]),
        (5, [0b010_00001, 0b0_00011_00, 0b0101_0010, 0b11_00110_0, 0b00000_001]),
        (6, [0b10_000001, 0b0011_0000, 0b000100_00, 0b10_000101, 0b0111_0001, 0b000000_00]),
        (8, [1, 2, 3, 4, 5, 6, 7, 0]),
    ],
)
def test_dense_layout_is_a_little_endian_bit_stream(bits: int, packed: list[int]) -> None:
    spec = Codec(bits).at(64)
    indices = np.array([1, 2, 3, 4, 5, 6, 7, 0] * 8, np.uint8)[None] & (2**bits - 1)

    got = reference.pack(indices, spec)

    assert got.tolist() == [packed * (spec.row_bytes // len(packed))]
    np.testing.assert_array_equal(reference.unpack(got, spec), indices)


@pytest.mark.parametrize("layout", CHOICES["layout"])
@pytest.mark.parametrize(("bits", "head_dim"), list(product(BITS, HEAD_DIMS)))
def test_unpack_inverts_pack(bits: int, head_dim: int, layout: str) -> None:
    spec = Codec(bits, layout=layout).at(head_dim)
    indices = np.random.default_rng(bits).integers(0, 2**bits, (50, head_dim), np.uint8)

    packed = reference.pack(indices, spec)

    assert packed.shape == (50, spec.row_bytes)
    np.testing.assert_array_equal(reference.unpack(packed, spec), indices)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_byte_layout_ignores_bits_above_the_index(bits: int) -> None:
    spec = Codec(bits, layout="byte").at(64)
    encoded = reference.encode(np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32), spec)
    dirty = Encoded(encoded.packed | np.uint8(0xFF << bits & 0xFF), encoded.norms)

    np.testing.assert_array_equal(reference.decode(dirty, spec), reference.decode(encoded, spec))


def test_index_counts_the_boundaries_below() -> None:
    spec = Codec(2).at(64)
    low, middle, high = tables.boundaries(2, "mlx-native")
    v = np.array([[-np.inf, low, np.nextafter(low, middle), middle, 1e-45, high, np.inf, np.nan]], np.float32)

    assert reference.indices(v, spec).tolist() == [[0, 0, 1, 1, 2, 2, 3, 0]]


def test_vanishing_vector_gets_the_middle_index_and_its_norm() -> None:
    x = np.zeros((2, 64), np.float32)
    x[1, 5] = 1e-10

    encoded = reference.encode(x, Codec(layout="byte", rotation="none").at(64))

    assert (encoded.packed == 7).all()
    assert encoded.norms.tolist() == [[0.0], [np.float32(1e-10)]]


@pytest.mark.parametrize("lead", [(0,), (0, 3), (2, 0)])
@pytest.mark.parametrize(("kind", "layout"), [("quantized", "dense"), ("quantized", "byte"), ("float16", "dense")])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_empty_input_encodes_to_empty_output(head_dim: int, kind: str, layout: str, lead: tuple[int, ...]) -> None:
    spec = Codec(kind=kind, layout=layout, norm="unbiased").at(head_dim)

    encoded = reference.encode(np.zeros((*lead, head_dim), np.float16), spec)

    assert encoded.packed.shape == (*lead, spec.row_bytes)
    assert encoded.norms.shape == (*lead, spec.norms)
    assert reference.decode(encoded, spec, "bfloat16").shape == (*lead, head_dim)
