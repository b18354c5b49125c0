"""A call on the executor gives the bits of the reference, in everything it writes."""

from typing import Any

import numpy as np

from backends import assert_same_bits
from hadakv_kernels import CodecSpec, Encoded, reference
from metal.calls import Array, Call, Decoding, Encoding, on_host
from metal.vectors import hard_vectors


def check(launch: Any, call: Call, rows: slice = slice(None)) -> None:
    """Run a call on the hard vectors, or some of them.

    Raises:
        AssertionError: it does not give the reference's bits.
        KernelFault: it does what a GPU does not define.
    """
    if isinstance(call, Encoding):
        x = hard_vectors(call.k.head_dim, call.dtype)[rows]
        check_encoding(launch, call, x, x[::-1].copy())
    else:
        check_decoding(launch, call, *stored(call.spec, rows))


def check_encoding(launch: Any, call: Encoding, x: Array, y: Array) -> None:
    """Every output, stand-ins included, of encoding x and, as the second stream, y."""
    expected = _encoded(call.k, x)
    expected += [np.zeros(1, np.uint8), np.zeros(1, np.float32)] if call.v is None else _encoded(call.v, y)
    if call.diagnose:
        seen = reference.diagnose(x, call.k)
        expected += [seen.scaled, seen.rms]
    else:
        expected += [np.zeros(1, np.float32)] * 2

    outputs = [on_host(output) for output in call.run(launch, x, y)]

    for name, output, values in zip(launch.ENCODE_OUTPUTS, outputs, expected, strict=True):
        _same(call, name, output, values)


def check_decoding(launch: Any, call: Decoding, packed: Array, norms: Array) -> None:
    """The values of packed rows and their norms."""
    with np.errstate(over="ignore"):
        expected = reference.decode(Encoded(packed, norms), call.spec, call.dtype, inverse=call.inverse)

    _same(call, "values", on_host(call.run(launch, packed, norms)), expected)


def stored(spec: CodecSpec, rows: slice = slice(None)) -> tuple[Array, Array]:
    """Any bytes are a packed row: random ones have every index everywhere. The norms are those of hard vectors."""
    norms = reference.exact_norms(hard_vectors(spec.head_dim), spec)
    packed = np.random.default_rng(spec.row_bytes).integers(0, 256, (len(norms), spec.row_bytes), np.uint8)
    return packed[rows], norms[rows]


def _encoded(spec: CodecSpec, x: Array) -> list[Array]:
    encoded = reference.encode(x, spec)
    return [encoded.packed, encoded.norms if spec.norms else np.zeros(1, np.float32)]


def _same(call: Call, name: str, got: Array, expected: Array) -> None:
    try:
        assert_same_bits(got, expected)
    except AssertionError as error:
        raise AssertionError(f"{call}: {name}: {error}") from error
