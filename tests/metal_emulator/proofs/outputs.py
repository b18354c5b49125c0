"""Comparison of all outputs of a call with the reference, bit by bit: on the emulator, or on a GPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import CodecSpec, Encoded, reference
from metal_emulator.proofs.hard_vectors import hard_vectors
from metal_emulator.proofs.kernel_calls import Array, Call, Decoding, Encoding, on_host
from support.backends import assert_same_bits

# Indices of hard vectors.
Rows = slice | NDArray[np.intp]
ALL = slice(None)


@dataclass(frozen=True)
class Output:
    """One output of a call, with the expected output of the reference."""

    call: Call
    name: str
    got: Array
    expected: Array

    @property
    def differing(self) -> int:
        """Number of elements that differ in a bit; all elements if the shape or the dtype differs."""
        if (self.got.dtype, self.got.shape) != (self.expected.dtype, self.expected.shape):
            return max(self.expected.size, 1)
        bits = f"u{self.expected.dtype.itemsize}"
        return int(np.count_nonzero(self.got.view(bits) != self.expected.view(bits)))

    def must_be_same(self) -> None:
        """Check that the outputs are equal.

        Raises:
            AssertionError: they differ.
        """
        try:
            assert_same_bits(self.got, self.expected)
        except AssertionError as error:
            raise AssertionError(f"{self.call}: {self.name}: {error}") from error


def check(mlx_kernels: Any, call: Call, rows: Rows = ALL) -> None:
    """Run a call on the emulator with the hard vectors, or some of them, and compare it with the reference.

    Raises:
        AssertionError: an output differs from the reference.
        KernelFault: the kernel's behaviour is undefined on a GPU.
    """
    for output in outputs(mlx_kernels, call, rows):
        output.must_be_same()


def every_way(mlx_kernels: Any, call: Call, rows: Rows = ALL, platform: str = "metal") -> Iterator[list[Output]]:
    """Run a call for one vector, for all vectors, and for all vectors in one threadgroup, which takes strides."""
    yield outputs(mlx_kernels, call, slice(1) if isinstance(rows, slice) else rows[:1], platform)
    yield outputs(mlx_kernels, call, rows, platform)
    with patch.object(mlx_kernels, "MAX_THREADGROUPS", 1):
        strided = outputs(mlx_kernels, call, rows, platform)
    yield strided


def outputs(mlx_kernels: Any, call: Call, rows: Rows = ALL, platform: str = "metal") -> list[Output]:
    """Return all outputs of a call with the hard vectors, including placeholders."""
    if isinstance(call, Encoding):
        x = hard_vectors(call.k.head_dim, call.dtype)[rows]
        return encoded(mlx_kernels, call, x, x[::-1].copy(), platform)
    return decoded(mlx_kernels, call, *stored(call.spec, rows), platform)


def encoded(mlx_kernels: Any, call: Encoding, x: Array, y: Array, platform: str = "metal") -> list[Output]:
    """Return all outputs of encoding x and, as the second stream, y."""
    expected = _encoded(call.k, x)
    expected += [np.zeros(1, np.uint8), np.zeros(1, np.float32)] if call.v is None else _encoded(call.v, y)
    if call.diagnose:
        seen = reference.diagnose(x, call.k)
        expected += [seen.scaled, seen.rms]
    else:
        expected += [np.zeros(1, np.float32)] * 2
    got = map(on_host, call.run(mlx_kernels, x, y, platform))
    return [
        Output(call, name, *arrays) for name, *arrays in zip(mlx_kernels.ENCODE_OUTPUTS, got, expected, strict=True)
    ]


def decoded(mlx_kernels: Any, call: Decoding, packed: Array, norms: Array, platform: str = "metal") -> list[Output]:
    """Return the output of decoding packed rows and norms."""
    with np.errstate(over="ignore"):
        expected = reference.decode(Encoded(packed, norms), call.spec, call.dtype, inverse=call.inverse)
    return [Output(call, "values", on_host(call.run(mlx_kernels, packed, norms, platform)), expected)]


def check_encoding(mlx_kernels: Any, call: Encoding, x: Array, y: Array) -> None:
    """Check all outputs of encoding x and y on the emulator."""
    for output in encoded(mlx_kernels, call, x, y):
        output.must_be_same()


def check_decoding(mlx_kernels: Any, call: Decoding, packed: Array, norms: Array) -> None:
    """Check the output of decoding on the emulator."""
    for output in decoded(mlx_kernels, call, packed, norms):
        output.must_be_same()


def stored(spec: CodecSpec, rows: Rows = ALL) -> tuple[Array, Array]:
    """Return random packed rows, which contain every index at every position, and the norms of the hard vectors."""
    norms = reference.exact_norms(hard_vectors(spec.head_dim), spec)
    packed = np.random.default_rng(spec.row_bytes).integers(0, 256, (len(norms), spec.row_bytes), np.uint8)
    return packed[rows], norms[rows]


def _encoded(spec: CodecSpec, x: Array) -> list[Array]:
    encoded = reference.encode(x, spec)
    return [encoded.packed, encoded.norms if spec.norms else np.zeros(1, np.float32)]
