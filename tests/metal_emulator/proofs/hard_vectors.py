"""Up to 101 vectors that are hard to encode, and values on and next to every boundary."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import DTYPES, Codec, CodecSpec, reference, tables
from metal_emulator.proofs.kernel_calls import Array
from support.inputs.hard_vectors import (
    LONGEST,
    SCALES,
    near_smallest_norm,
    on_and_next_to,
    patterns,
    vectors_on_boundaries,
)

# The numbers are odd, and 5 modulo 8. So the last simdgroup and the last threadgroup are partial if they hold more than
# one vector. There is more than one threadgroup for every head_dim.
ROWS = {64: 101, 128: 101, 256: 61, 512: 61}


@lru_cache
def hard_vectors(head_dim: int, dtype: str = "float32") -> Array:
    """Return all patterns at several scales, zeros, and norms near the smallest, shuffled: `[ROWS, head_dim]`."""
    rng = np.random.default_rng(head_dim)
    shapes = patterns(head_dim, rng)
    rounds = 3 if head_dim < 256 else 2
    scales = np.resize(SCALES, rounds * len(shapes))
    zeros = [np.zeros(head_dim), np.full(head_dim, -0.0), np.resize([0.0, -0.0], head_dim)]
    smallest = near_smallest_norm(head_dim)
    rows = np.vstack([np.tile(shapes, (rounds, 1)) * scales[:, None], *zeros, smallest[:: -(-len(smallest) // 9)]])
    rows = np.vstack([rows, rng.standard_normal((ROWS[head_dim] - len(rows), head_dim))])
    rows *= np.minimum(1, LONGEST / np.linalg.norm(rows, axis=1, keepdims=True).clip(1))
    rows = rng.permutation(rows).astype(np.float32)
    return (rows.clip(-65504, 65504) if dtype == "float16" else rows).astype(DTYPES[dtype])


@lru_cache
def boundary_vectors(spec: CodecSpec) -> NDArray[np.float32]:
    """Return a small set of vectors on boundaries that contains every boundary and the floats next to it."""
    rows = vectors_on_boundaries(spec)
    norms = reference.exact_norms(rows, spec)
    scaled = reference.scaled_values(rows, norms, spec)
    wanted = set(on_and_next_to(tables.boundaries(spec.codec.bits, spec.codec.codebook)).ravel().tolist())
    chosen = []
    for row, values in zip(rows, scaled.tolist(), strict=True):
        if not wanted.isdisjoint(values):
            wanted.difference_update(values)
            chosen.append(row)
    assert not wanted, f"no vector has {wanted}"
    return np.array(chosen)


def unrotated_bytes(bits: int, codebook: str, head_dim: int) -> CodecSpec:
    """Return a codec without rotation and packing, so that scaled values and indices can be read directly."""
    return Codec(bits, rotation="none", layout="byte", codebook=codebook).at(head_dim)
