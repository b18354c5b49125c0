"""Properties: every backend equals the reference for any shape, codec, values and memory layout."""

from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hadakv_kernels import BITS, DTYPES, HEAD_DIMS, Backend, Codec, CodecSpec, Encoded, Stream, reference
from hadakv_kernels.codec import CHOICES
from support.backends import assert_same_bits, assert_same_encoded, comparable, flushes, of, on_host

LAYOUTS = ("contiguous", "misaligned", "read-only", "every second", "backwards", "inner strided", "axes swapped")

codecs = st.builds(
    Codec,
    bits=st.sampled_from(BITS),
    d512_scale=st.sampled_from([1.0, 16.0, 0.3]),
    **{option: st.sampled_from(allowed) for option, allowed in CHOICES.items()},
)
specs = st.builds(CodecSpec, codecs, st.sampled_from(HEAD_DIMS))
leading_axes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
dtypes = st.sampled_from(list(DTYPES))
layouts = st.sampled_from(LAYOUTS)
seeds = st.integers(0, 2**32 - 1)
# Maximum exponent bits of a float32: of 2**0, of 2**15 (the maximum of float16), and of 2**127 (the maximum).
top_exponents = st.sampled_from([127, 142, 254]) | st.integers(0, 254)


def float_patterns(shape: tuple[int, ...], seed: int, top_exponent: int) -> NDArray[np.float32]:
    """Return finite float32 values with random bits, including denormals, below 2**(top_exponent - 126)."""
    bits = np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32)
    exponents = (bits >> 23 & 0xFF) % (top_exponent + 1)
    return (bits & 0x807FFFFF | exponents << 23).view(np.float32)


def laid_out(x: NDArray[Any], layout: str) -> NDArray[Any]:
    """Return the same values in another memory layout."""
    if layout == "misaligned":
        blob = b"\x7f" + x.tobytes()
        return np.frombuffer(blob, x.dtype, x.size, offset=1).reshape(x.shape)
    if layout == "read-only":
        x = x.copy()
        x.setflags(write=False)
    if layout == "every second" and x.ndim > 1:
        return np.repeat(x, 2, axis=0)[::2]
    if layout == "backwards":
        return x[::-1].copy()[::-1]
    if layout == "inner strided":
        return np.repeat(x, 2, axis=-1)[..., ::2]
    if layout == "axes swapped":
        return np.asfortranarray(x)
    return x


@st.composite
def finite_streams(draw: st.DrawFn) -> Stream:
    """Draw finite values of any dtype and leading axes, with any codec."""
    spec, dtype, lead = draw(specs), draw(dtypes), draw(leading_axes)
    # Limits that stay finite: in float16 (and exact in bfloat16), or in any other dtype.
    limit = 65280 if "float16" in (dtype, spec.codec.kind) else 3.3e38
    values = float_patterns((*lead, spec.head_dim), draw(seeds), draw(top_exponents))
    return Stream(values.clip(-limit, limit).astype(DTYPES[dtype]), spec)


@st.composite
def stored_vectors(draw: st.DrawFn) -> tuple[Encoded, CodecSpec]:
    """Draw any packed bytes and finite norms, with a codec that fits them."""
    spec, lead, seed = draw(specs), draw(leading_axes), draw(seeds)
    packed = np.random.default_rng(seed).integers(0, 256, (*lead, spec.row_bytes), np.uint8)
    if spec.codec.kind == "float16":
        packed[..., 1::2] &= 0xBF  # neither NaN nor infinity
    return Encoded(packed, float_patterns((*lead, spec.norms), seed, draw(top_exponents))), spec


# tests/metal runs these tests with fewer examples, because each new codec has to be compiled there.
ANY_INPUT = given(finite_streams(), layouts)
ANY_STORED = given(stored_vectors(), dtypes, layouts, st.booleans())
ANY_PARTS = given(specs, dtypes, st.lists(st.integers(0, 6), min_size=1, max_size=4), seeds)


@settings(max_examples=300)
@ANY_INPUT
def test_any_finite_input_is_encoded_as_reference(backend: Backend, stream: Stream, layout: str) -> None:
    x, spec = stream
    expected = reference.encode(x, spec)

    (encoded,) = backend.encode([Stream(laid_out(x, layout), spec)])
    got = on_host(backend, encoded)

    finite = np.isfinite(expected.norms).all(axis=-1)
    same = finite & comparable(backend, x.reshape(x.size // spec.head_dim, spec.head_dim)).reshape(finite.shape)
    assert_same_encoded(of(got, same), of(expected, same))
    assert not np.isfinite(got.norms[~finite]).all(axis=-1).any()
    assert backend.all_finite(encoded, spec) == finite.all()


@settings(max_examples=300)
@ANY_STORED
def test_any_bytes_and_norms_are_decoded_as_reference(
    backend: Backend, stored: tuple[Encoded, CodecSpec], dtype: str, layout: str, inverse: bool
) -> None:
    encoded, spec = stored
    expected = reference.decode(encoded, spec, dtype, inverse=inverse)

    moved = Encoded(laid_out(encoded.packed, layout), laid_out(encoded.norms, layout))
    got = backend.decode(moved, spec, dtype, inverse=inverse)

    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(got), finite)
    if not flushes(backend):
        assert_same_bits(got[finite], expected[finite])


@ANY_PARTS
def test_concatenated_and_sliced_parts_equal_the_whole(
    backend: Backend, spec: CodecSpec, dtype: str, tokens: list[int], seed: int
) -> None:
    ends = list(accumulate(tokens))
    x = np.random.default_rng(seed).standard_normal((2, ends[-1], spec.head_dim)).astype(DTYPES[dtype])
    parts = backend.encode([Stream(part, spec) for part in np.split(x, ends[:-1], axis=1)])

    packed = backend.concatenate([part.packed for part in parts], 1)
    norms = backend.concatenate([part.norms for part in parts], 1)

    assert_same_encoded(on_host(backend, Encoded(packed, norms)), reference.encode(x, spec))
    for start, end, part in zip([0, *ends], ends, parts, strict=False):
        sliced = Encoded(packed[:, start:end], norms[:, start:end])
        assert_same_encoded(on_host(backend, sliced), on_host(backend, part))
        assert_same_bits(backend.decode(sliced, spec, dtype), backend.decode(part, spec, dtype))


@given(seeds, layouts)
def test_encode_does_not_change_its_input(backend: Backend, seed: int, layout: str) -> None:
    x = laid_out(float_patterns((3, 64), seed, 130), layout)
    before = x.copy()

    backend.encode([Stream(x, Codec().at(64))])

    assert_same_bits(x, before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_keeps_the_values(layout: str) -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)

    moved = laid_out(x, layout)

    assert_same_bits(moved, x)
    assert moved.flags.aligned == (layout != "misaligned")
    assert moved.flags.writeable == (layout not in ("misaligned", "read-only"))
    assert moved.flags.c_contiguous == (layout in ("contiguous", "misaligned", "read-only"))
