"""Backends under test, and equality of their results: equal bits, no tolerances."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import Backend, Codec, Encoded, Stream, reference
from hadakv_kernels.backend import GPUS
from hadakv_kernels.cpu import CpuBackend, isas
from hadakv_kernels.gpu import GpuBackend, is_available

# Two threads even on a machine with one core, so that work is split.
THREADS = 2

GPUS_HERE = [name for name in GPUS if is_available(name)]
# To add a backend to the suite, add an entry here. Without a GPU, tests/metal runs the suite of the kernels.
BACKENDS: dict[str, Callable[[], Backend]] = {
    **{f"cpu-{isa}": partial(CpuBackend, THREADS, isa) for isa in isas() or ["numpy"]},
    **{name: partial(GpuBackend, name) for name in GPUS_HERE},
}

# Services under test: arguments of Python that start the service, and the value of --backend. The first is the default.
MODULE = ("-m", "hadakv_service")
ON_THE_EXECUTOR = (str(Path(__file__).parents[1] / "metal_emulator" / "serve.py"),)
SERVED: dict[str, tuple[Sequence[str], str]] = (
    {name: (MODULE, name) for name in (*GPUS_HERE, "cpu")}
    if GPUS_HERE
    else {"auto": (MODULE, "auto"), "metal-source": (ON_THE_EXECUTOR, "metal")}
)


def in_ci() -> bool:
    """Return whether this is CI, where no optional tool may be missing."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def on_host(backend: Backend, encoded: Encoded) -> Encoded:
    """Return vectors of a backend as NumPy arrays."""
    return Encoded(backend.to_host(encoded.packed), backend.to_host(encoded.norms))


def on_device(backend: Backend, encoded: Encoded) -> Encoded:
    """Return NumPy arrays as arrays of the backend."""
    return Encoded(backend.concatenate([encoded.packed], 0), backend.concatenate([encoded.norms], 0))


def without_denormals(x: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which vectors `[vectors, head_dim]` are encoded without float32 values that Metal flushes to zero.

    Squares that vanish beside others change no sum: only the smallest norms are made of them.
    """
    # At head_dim 512 each half has its own norm.
    block_dim = min(x.shape[-1], 256)
    size = np.abs(x.astype(np.float64)).reshape(len(x), x.shape[-1] // block_dim, block_dim)
    norm = np.sqrt(np.square(size).sum(axis=-1))
    smallest = np.where(size > 0, size, np.inf).min(axis=-1)
    result: NDArray[np.bool_] = ((norm == 0) | ((norm > 1e-12) & (smallest >= 1e-28 * norm.clip(1)))).all(axis=-1)
    return result


def flushes(backend: Backend) -> bool:
    """Return whether the backend flushes denormal float32 values to zero. Only Apple's GPUs may."""
    if backend.name != "metal":
        return False
    x = np.full((1, 64), 1e-40, np.float32)
    x[0, 0] = 1
    spec = Codec(rotation="none").at(64)
    (got,) = backend.encode([Stream(x, spec)])
    return not np.array_equal(backend.to_host(got.packed), reference.encode(x, spec).packed)


def comparable(backend: Backend, x: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which vectors `[vectors, head_dim]` must equal the reference on a backend."""
    return without_denormals(x) if flushes(backend) else np.ones(len(x), bool)


def of(encoded: Encoded, vectors: NDArray[np.bool_]) -> Encoded:
    """Select vectors."""
    return Encoded(encoded.packed[vectors], encoded.norms[vectors])


def assert_same_bits(got: NDArray[Any], expected: NDArray[Any]) -> None:
    """Assert equal dtype, shape and bits. -0.0 differs from 0.0, and a NaN equals only itself."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    as_bits = f"u{expected.dtype.itemsize}"
    differ = np.ascontiguousarray(got).view(as_bits) != np.ascontiguousarray(expected).view(as_bits)
    assert not differ.any(), f"{differ.sum()} of {differ.size} differ, the first at {np.argwhere(differ)[0]}"


def assert_same_encoded(got: Encoded, expected: Encoded) -> None:
    """Assert equal packed bytes and norms."""
    assert_same_bits(got.norms, expected.norms)
    assert_same_bits(got.packed, expected.packed)
