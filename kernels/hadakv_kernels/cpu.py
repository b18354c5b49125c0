"""The CPU backend: the C++ path where it is built, NumPy otherwise; the same bytes either way."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import reference
from hadakv_kernels.backend import Stream
from hadakv_kernels.codec import CodecSpec
from hadakv_kernels.reference import Diagnostics, Encoded


class CpuBackend:
    """The codec on this machine's processors; arrays are NumPy arrays."""

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or os.cpu_count() or 1

    def encode(self, streams: Sequence[Stream]) -> list[Encoded]:
        """Encode every stream."""
        return [reference.encode(x, spec) for x, spec in streams]

    def all_finite(self, encoded: Encoded, spec: CodecSpec) -> bool:
        """Whether every norm (for float16, every value) is finite."""
        values = encoded.packed.view(np.float16) if spec.codec.kind == "float16" else encoded.norms
        return bool(np.isfinite(values).all())

    def decode(self, encoded: Encoded, spec: CodecSpec, dtype: str, *, inverse: bool = True) -> NDArray[Any]:
        """Values [..., head_dim] of that dtype."""
        return reference.decode(encoded, spec, dtype, inverse=inverse)

    def diagnose(self, x: NDArray[Any], spec: CodecSpec) -> Diagnostics:
        """Encode, keeping the scaled values and the RMS of each block."""
        return reference.diagnose(x, spec)

    def concatenate(self, arrays: Sequence[NDArray[Any]], axis: int) -> NDArray[Any]:
        """A new array, joined along an axis."""
        return np.concatenate(arrays, axis)

    def to_host(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array itself, in C order."""
        return np.ascontiguousarray(array)
