"""Intermediate results of encoding: the scaled values and the RMS of each block."""

from typing import Any

import numpy as np
import pytest

from hadakv_kernels import BITS, DTYPES, HEAD_DIMS, Backend, Codec, Stream, reference, tables
from hadakv_kernels.codec import CHOICES
from support.backends import assert_same_bits, assert_same_encoded, on_host
from support.covering import thinned

CODECS = (HEAD_DIMS, BITS, CHOICES["rotation"], CHOICES["norm"])


@pytest.mark.parametrize("rows", thinned(CODECS, strength=3, name="d{}".format))
def test_diagnose_equals_reference_and_encode(rows: list[Any], backend: Backend) -> None:
    for head_dim, bits, rotation, norm in rows:
        spec = Codec(bits, rotation=rotation, norm=norm, d512_scale=2.5).at(head_dim)
        dtype = list(DTYPES)[bits % 3]
        x = np.random.default_rng(3).standard_normal((2, 17, head_dim)).astype(DTYPES[dtype])
        expected = reference.diagnose(x, spec)

        got = backend.diagnose(x, spec)

        (encoded,) = backend.encode([Stream(x, spec)])
        assert_same_encoded(on_host(backend, got.encoded), on_host(backend, encoded))
        assert_same_bits(backend.to_host(got.scaled), expected.scaled)
        assert_same_bits(backend.to_host(got.rms), expected.rms)


@pytest.mark.parametrize(("head_dim", "d512_scale"), [(64, 1.0), (256, 1.0), (512, 1.0), (512, 16.0)])
def test_unit_vector_is_rotated_to_a_column_of_signs(head_dim: int, d512_scale: float, backend: Backend) -> None:
    element = 5
    x = np.zeros((1, head_dim), np.float32)
    x[0, element] = 3.0
    common = np.bitwise_count(np.arange(head_dim) & element)
    column = np.where(common % 2, -1, 1) * tables.signs(head_dim)[element]

    got = backend.diagnose(x, Codec(d512_scale=d512_scale).at(head_dim))

    np.testing.assert_allclose(backend.to_host(got.scaled)[0], column * d512_scale, rtol=3e-7)
    np.testing.assert_allclose(backend.to_host(got.rms)[0], d512_scale, rtol=3e-7)


def test_unrotated_values_are_scaled_by_their_rms(backend: Backend) -> None:
    x = np.zeros((2, 512), np.float32)
    x[0, :256], x[0, 256:] = 2.0, -0.5
    x[1, 300] = 7.0

    got = backend.diagnose(x, Codec(rotation="none").at(512))

    scaled = backend.to_host(got.scaled)
    assert scaled[0].tolist() == [1.0] * 256 + [-1.0] * 256
    assert scaled[1, 300] == pytest.approx(16.0)
    np.testing.assert_allclose(backend.to_host(got.rms), [[1, 1], [0, 1]], rtol=1e-6)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rms_is_the_rms_of_the_scaled_values(head_dim: int, backend: Backend) -> None:
    spec = Codec(d512_scale=3.0).at(head_dim)
    x = np.random.default_rng(5).standard_normal((7, head_dim)).astype(np.float32)

    got = backend.diagnose(x, spec)

    blocks = backend.to_host(got.scaled).astype(np.float64).reshape(7, spec.blocks, -1)
    np.testing.assert_allclose(backend.to_host(got.rms), np.sqrt(np.square(blocks).mean(axis=-1)), rtol=1e-6)


@pytest.mark.parametrize("lead", [(), (0,), (2, 0, 3), (1, 2, 3)])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_diagnose_keeps_leading_axes(head_dim: int, lead: tuple[int, ...], backend: Backend) -> None:
    spec = Codec().at(head_dim)

    got = backend.diagnose(np.ones((*lead, head_dim), np.float32), spec)

    assert got.scaled.shape == (*lead, head_dim)
    assert got.rms.shape == (*lead, spec.blocks)
    assert got.encoded.packed.shape == (*lead, spec.row_bytes)
    assert got.encoded.norms.shape == (*lead, spec.norms)
