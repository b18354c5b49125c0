"""Vectors that are hard to encode: extreme shapes, scales and norms, and values on every boundary."""

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import CodecSpec, tables

SCALES = (3e-42, 1e-38, 1e-30, 1e-20, 1e-11, 1e-10, 3e-6, 1.0, 1e4, 65000.0, 1e18)
# Maximum length of a vector. The sum of its squares, in any order, stays below the maximum of float32, 3.4e38.
LONGEST = 1.6e19


def patterns(head_dim: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return typical and extreme vectors, whose largest element is near 1: `[patterns, head_dim]`."""
    gaussian = rng.standard_normal((3, head_dim))
    heavy = rng.standard_t(1.5, (3, head_dim))
    outliers = gaussian / 50
    outliers[:, rng.integers(0, head_dim, 3)] = 1.0
    sparse = np.where(rng.random((3, head_dim)) < 0.05, gaussian, -0.0)
    one_hot = np.eye(head_dim)[[0, 1, head_dim // 2 - 1, head_dim // 2, head_dim - 1]]
    constant, alternating = np.ones(head_dim), np.resize([1.0, -1.0], head_dim)
    halves = np.repeat([1.0, 1e-12], head_dim // 2)
    ramp = np.linspace(-1, 1, head_dim)
    shapes = np.vstack([gaussian, heavy, outliers, sparse, one_hot, constant, -constant, alternating, halves, ramp])
    return np.divide(shapes, np.abs(shapes).max(axis=1, keepdims=True).clip(1e-300))


def near_smallest_norm(head_dim: int) -> NDArray[np.float64]:
    """Return one-hot vectors whose norm is within a few ulp of 1e-10, for every definition of the norm."""
    steps = 1 + np.arange(-8, 9) * 2.0**-24
    # At D = 512 the norm is the RMS of a block: that of one element, or of the element rotated over the whole vector.
    definitions = (1.0,) if head_dim < 512 else (16.0, np.sqrt(512))
    sizes = np.concatenate([1e-10 * factor * steps for factor in definitions])
    return np.outer(sizes, np.eye(head_dim)[3])


def on_and_next_to(boundaries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the float below each boundary, the boundary, and the float above it: `[3, boundaries]`."""
    below, above = np.float32(-np.inf), np.float32(np.inf)
    return np.stack([np.nextafter(boundaries, below), boundaries, np.nextafter(boundaries, above)])


def vectors_on_boundaries(spec: CodecSpec) -> NDArray[np.float32]:
    """Return vectors whose scaled values are the boundaries and the floats next to them: `[vectors, head_dim]`.

    Values of unit variance are scaled by 1. So a few boundaries at a time are filled up to unit variance with a
    constant, and the last element varies until the norm is exact.
    """
    values = on_and_next_to(tables.boundaries(spec.codec.bits, spec.codec.codebook)).ravel()
    rows = []
    for some in np.array_split(values, -(-len(values) * 32 // spec.block_dim)):
        rest = spec.block_dim - len(some)
        fill = np.sqrt((spec.block_dim - np.square(some, dtype=np.float64).sum()) / rest)
        block = np.append(some, np.full(rest, fill))
        for step in range(-16, 16):
            block[-1] = fill + step * spec.block_dim * 2.0**-25
            rows.append(np.tile(block, spec.blocks))
    return np.array(rows, np.float32)
