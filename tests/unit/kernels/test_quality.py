"""Accuracy of the codec: its errors equal the theoretical ones, and the rotation helps against outliers.

Every backend equals the reference to the bit, so only the reference is tested here.
"""

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import BITS, DTYPES, HEAD_DIMS, Codec, CodecSpec, reference
from hadakv_kernels.codec import CHOICES
from support.covering import thinned

# Mean squared error of the converged Lloyd-Max quantizers of a standard normal variable.
LLOYD_MAX_MSE = {2: 0.11748, 3: 0.034548, 4: 0.009501, 5: 0.0025047, 6: 0.00064424, 8: 0.00004119}
# Errors of the reference kernels' tables. They have none for 2 and 3 bits, where the converged tables are used.
MLX_NATIVE_NRMSE = {4: 0.097, 5: 0.050, 6: 0.025, 8: 0.0079}
NRMSE = {
    **{("lloyd-max", bits): mse**0.5 for bits, mse in LLOYD_MAX_MSE.items()},
    **{("mlx-native", bits): LLOYD_MAX_MSE[bits] ** 0.5 for bits in (2, 3)},
    **{("mlx-native", bits): nrmse for bits, nrmse in MLX_NATIVE_NRMSE.items()},
}


def gaussian(count: int, head_dim: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, head_dim)).astype(np.float32)


def round_trip(x: NDArray[np.float32], spec: CodecSpec) -> NDArray[np.float64]:
    return reference.decode(reference.encode(x, spec), spec).astype(np.float64)


def nrmse(got: NDArray[np.float64], x: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(got - x).sum() / np.square(x, dtype=np.float64).sum()))


@pytest.mark.parametrize(
    "rows", thinned((HEAD_DIMS, BITS, CHOICES["codebook"], CHOICES["rotation"]), name="d{}".format)
)
def test_error_on_gaussian_data_is_the_quantizer_error(rows: list[Any]) -> None:
    for head_dim, bits, codebook, rotation in rows:
        spec = Codec(bits, codebook=codebook, rotation=rotation).at(head_dim)
        x = gaussian(500_000 // head_dim, head_dim)

        error = nrmse(round_trip(x, spec), x)

        # A vector normalised by its own length varies slightly less than a normal variable, most of all at 64 elements.
        assert error == pytest.approx(NRMSE[codebook, bits], rel=0.02)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_error_on_16_bit_dtypes_is_the_quantizer_error(dtype: str) -> None:
    spec = Codec(4).at(128)
    x = gaussian(4000, 128).astype(DTYPES[dtype])

    decoded = reference.decode(reference.encode(x, spec), spec, dtype)

    assert nrmse(decoded.astype(np.float64), x.astype(np.float32)) == pytest.approx(0.097, rel=0.02)


@pytest.mark.parametrize("codebook", ["mlx-native", "lloyd-max"])
def test_more_bits_reduce_the_error(codebook: str) -> None:
    x = gaussian(2000, 128)

    errors = [nrmse(round_trip(x, Codec(bits, codebook=codebook).at(128)), x) for bits in BITS]

    assert errors == sorted(errors, reverse=True)
    assert all(more > 1.7 * less for more, less in pairwise(errors))


@pytest.mark.parametrize("bits", BITS)
def test_unbiased_norm_gives_the_exact_projection(bits: int) -> None:
    for head_dim, rotation in product(HEAD_DIMS, CHOICES["rotation"]):
        spec = Codec(bits, rotation=rotation, norm="unbiased").at(head_dim)
        x = gaussian(300, head_dim) * np.float32(3.7)

        projection = (round_trip(x, spec) * x).sum(axis=-1) / np.square(x, dtype=np.float64).sum(axis=-1)

        np.testing.assert_allclose(projection, 1, rtol=0, atol=2e-6)


def test_unbiased_norm_gives_exact_projections_per_block() -> None:
    spec = Codec(3, rotation="none", norm="unbiased", d512_scale=0.5).at(512)
    x = (gaussian(300, 512) * np.repeat([1, 20], 256)).astype(np.float32)

    blocks = round_trip(x, spec).reshape(300, 2, 256)
    projection = (blocks * x.reshape(blocks.shape)).sum(axis=-1) / np.square(x.reshape(blocks.shape)).sum(axis=-1)

    np.testing.assert_allclose(projection, 1, rtol=0, atol=2e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_exact_norm_shortens_the_projection(bits: int) -> None:
    spec = Codec(bits, norm="exact").at(128)
    x = gaussian(3000, 128)

    projection = (round_trip(x, spec) * x).sum() / np.square(x).sum()

    # For a converged quantizer, E[x q(x)] = E[q(x)^2] = 1 - MSE.
    assert projection == pytest.approx(1 - LLOYD_MAX_MSE[bits], abs=0.005)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rotation_spreads_outlier_channels(head_dim: int) -> None:
    x = gaussian(500, head_dim)
    x[:, [11, -11]] *= 50

    rotated = nrmse(round_trip(x, Codec(4).at(head_dim)), x)
    unrotated = nrmse(round_trip(x, Codec(4, rotation="none").at(head_dim)), x)

    # Without the rotation, an outlier is far beyond the last centroid.
    assert rotated < 0.12
    assert unrotated > 0.4


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_attention_scores_are_equal_in_the_rotated_domain(head_dim: int) -> None:
    spec = Codec(4).at(head_dim)
    keys, queries = gaussian(200, head_dim, 1), gaussian(50, head_dim, 2)
    stored = reference.encode(keys, spec)

    rotated = np.inner(reference.rotated(queries, spec), reference.decode(stored, spec, inverse=False))
    plain = np.inner(queries, reference.decode(stored, spec))

    assert np.abs(plain).max() > 10
    np.testing.assert_allclose(rotated, plain, rtol=0, atol=2e-4)


def test_rotated_domain_without_rotation_is_plain() -> None:
    spec = Codec(5, rotation="none").at(256)
    stored = reference.encode(gaussian(20, 256), spec)

    np.testing.assert_array_equal(reference.decode(stored, spec, inverse=False), reference.decode(stored, spec))


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_error_does_not_depend_on_the_scale(head_dim: int, scale: float) -> None:
    spec = Codec(4).at(head_dim)
    x = gaussian(2000, head_dim) * np.float32(scale)

    assert nrmse(round_trip(x, spec), x) == pytest.approx(0.097, rel=0.02)


def test_vanishing_vector_decodes_to_near_zero() -> None:
    spec = Codec(4).at(128)
    x = gaussian(10, 128) * np.float32(1e-13)

    decoded = round_trip(x, spec)

    assert np.abs(decoded).max() < 1e-11


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_zeros_decode_to_zeros(head_dim: int) -> None:
    spec = Codec(4, norm="unbiased").at(head_dim)

    assert not round_trip(np.zeros((3, head_dim), np.float32), spec).any()
