"""CPU backend: C++ kernels if they are built, NumPy otherwise. Both give the same bytes."""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import reference, tables
from hadakv_kernels.backend import Stream, host_memory_nbytes
from hadakv_kernels.codec import CodecSpec
from hadakv_kernels.errors import BackendUnavailable
from hadakv_kernels.reference import DTYPES, Diagnostics, Encoded

try:
    from hadakv_kernels import _native
except ImportError:  # not built: a source tree, or a platform without a compiler
    _native = None  # type: ignore[assignment]

_CODES = {dtype: code for code, dtype in enumerate(DTYPES.values())}
_FLOAT16 = _CODES[DTYPES["float16"]]
_FLOAT16_EXPONENT = 0x7C00  # all exponent bits are set in an infinity or NaN
_BFLOAT16 = DTYPES["bfloat16"]


def isas() -> list[str]:
    """Return the instruction sets for `CpuBackend` on this machine, fastest first. Empty if only NumPy is available."""
    return _native.isas() if _native is not None else []


class CpuBackend:
    """The codec on this machine's processors. Arrays are NumPy arrays.

    Attributes:
        detail: instruction set and number of threads, for users.
        memory_nbytes: memory of this machine in bytes.
        engine: the C++ kernels; None if NumPy is used.
        encoded_rows: rows encoded so far, by the name of the processor that encoded them.

    Args:
        threads: number of threads that work on one call; None uses every processor.
        isa: instruction set, one of `isas()`, or "numpy"; None takes the fastest.

    Raises:
        BackendUnavailable: isa is not available on this machine.
        ValueError: threads is less than 1.
    """

    name = "cpu"
    # Two cores encode this much in about a millisecond.
    slice_nbytes: int | None = 4 << 20

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, or None for every processor, not {threads}")
        self.threads = threads or os.cpu_count() or 1
        self.engine = _open_engine(self.threads, isa)
        workers = f"{self.threads} thread{'s' * (self.threads > 1)}"
        self.detail = f"{self.engine.isa}, {workers}" if self.engine else "numpy"
        self.memory_nbytes = host_memory_nbytes()
        self.encoded_rows = {self.name: 0}

    def limit_memory(self, stored: int, working: int) -> None:
        """Do nothing. Arrays are ordinary process memory, which is freed at once."""

    def encode(self, streams: Sequence[Stream]) -> list[Encoded]:
        """Encode every stream."""
        for x, spec in streams:
            self.encoded_rows[self.name] += x.size // spec.head_dim
        if self.engine is None:
            return [reference.encode(x, spec) for x, spec in streams]
        return [_encode(self.engine, x, spec) for x, spec in streams]

    def encodes_on_cpu(self, rows: int) -> bool:  # noqa: ARG002 - it always does
        """Return True."""
        return True

    def all_finite(self, encoded: Encoded, spec: CodecSpec) -> bool:
        """Whether every norm (for float16, every value) is finite."""
        if spec.codec.kind == "quantized":
            return bool(np.isfinite(encoded.norms).all())
        # NumPy's isfinite is scalar for float16, but operations on uint16 are vectorized. So test the exponent bits.
        exponents = encoded.packed.view(np.uint16) & _FLOAT16_EXPONENT
        return bool(exponents.max(initial=0) < _FLOAT16_EXPONENT)

    def decode(self, encoded: Encoded, spec: CodecSpec, dtype: str, *, inverse: bool = True) -> NDArray[Any]:
        """Decode to values [..., head_dim] of `dtype`."""
        if self.engine is None:
            return reference.decode(encoded, spec, dtype, inverse=inverse)
        return _decode(self.engine, encoded, spec, dtype, inverse)

    def diagnose(self, x: NDArray[Any], spec: CodecSpec) -> Diagnostics:
        """Encode x, and keep the scaled values and the RMS of each block."""
        return reference.diagnose(x, spec)

    def concatenate(self, arrays: Sequence[NDArray[Any]], axis: int) -> NDArray[Any]:
        """A new array, joined along an axis."""
        return np.concatenate(arrays, axis)

    def to_device(self, array: NDArray[Any]) -> NDArray[Any]:
        """Copy an array in C order."""
        return np.array(array, order="C")

    def to_host(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array in C order, without a copy if it is already."""
        return np.ascontiguousarray(array)


def _open_engine(threads: int, isa: str | None) -> "_native.Engine | None":
    available = isas()
    if isa == "numpy" or (isa is None and not available):
        return None
    if isa is not None and isa not in available:
        choices = ", ".join([*available, "numpy"])
        raise BackendUnavailable(f"isa {isa!r} is not available on this machine: choose one of {choices}")
    return _native.Engine(isa or available[0], threads)


@lru_cache(maxsize=256)
def native_plan(spec: CodecSpec) -> "_native.Plan":
    """Build the engine's plan of a codec: sizes, constants and tables."""
    codec = spec.codec
    return _native.Plan(
        head_dim=spec.head_dim,
        bits=codec.bits,
        field_bits=8 if codec.layout == "byte" else codec.bits,
        rotated=codec.rotation == "hadamard",
        unbiased=codec.norm == "unbiased",
        inv_sqrt=float(spec.inv_sqrt),
        gain=float(spec.gain),
        centroids=tables.centroids(codec.bits, codec.codebook),
        boundaries=tables.boundaries(codec.bits, codec.codebook),
        sign_bits=tables.sign_bits(spec.head_dim),
    )


def _buffer(array: NDArray[Any]) -> NDArray[Any]:
    # bfloat16 is not a NumPy dtype, so its arrays do not export a buffer. View them as uint16.
    return array.view(np.uint16) if array.dtype == _BFLOAT16 else array


def _encode(engine: "_native.Engine", x: NDArray[Any], spec: CodecSpec) -> Encoded:
    reference.check_input(x, spec)
    source, code, lead = _buffer(np.ascontiguousarray(x)), _CODES[x.dtype], x.shape[:-1]
    packed = np.empty((*lead, spec.row_bytes), np.uint8)
    norms = np.empty((*lead, spec.norms), np.float32)
    if spec.codec.kind == "float16":
        engine.convert(code, _FLOAT16, source, packed)
    else:
        engine.encode(native_plan(spec), code, source, packed, norms)
    return Encoded(packed, norms)


def _decode(engine: "_native.Engine", encoded: Encoded, spec: CodecSpec, dtype: str, inverse: bool) -> NDArray[Any]:
    reference.check_decode(encoded, spec, dtype)
    packed = np.ascontiguousarray(encoded.packed)
    values = np.empty((*packed.shape[:-1], spec.head_dim), DTYPES[dtype])
    out, code = _buffer(values), _CODES[values.dtype]
    if spec.codec.kind == "float16":
        engine.convert(_FLOAT16, code, packed, out)
    else:
        engine.decode(native_plan(spec), code, inverse, packed, np.ascontiguousarray(encoded.norms), out)
    return values
