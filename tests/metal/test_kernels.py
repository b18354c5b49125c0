"""The kernels' Metal source, executed: the bytes of the reference."""

from collections.abc import Iterator

import numpy as np
import pytest

from hadakv_kernels import DTYPES, Codec, CodecSpec, Stream, reference
from hadakv_kernels.gpu import GpuBackend
from metal.executor import executing

SPECS = {
    "4-bit": Codec().at(256),
    "8-bit unbiased": Codec(8, norm="unbiased").at(128),
    "5-bit of two blocks": Codec(5, norm="unbiased", codebook="lloyd-max").at(512),
    "3-bit bytes unrotated": Codec(3, layout="byte", rotation="none").at(64),
}


@pytest.fixture
def backend() -> Iterator[GpuBackend]:
    with executing():
        yield GpuBackend("metal")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_metal_source_gives_the_bytes_of_the_reference(backend: GpuBackend, spec: CodecSpec, dtype: str) -> None:
    x = np.random.default_rng(7).standard_normal((9, spec.head_dim)).astype(DTYPES[dtype])
    expected = reference.encode(x, spec)

    (got,) = backend.encode([Stream(x, spec)])
    decoded = backend.decode(expected, spec, dtype)

    assert np.array_equal(got.packed, expected.packed)
    assert np.array_equal(got.norms.view(np.uint32), expected.norms.view(np.uint32))
    assert np.array_equal(decoded.view(np.uint8), reference.decode(expected, spec, dtype).view(np.uint8))
