"""A hundred vectors that are hard to encode, and values on and beside every boundary."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import DTYPES, Codec, CodecSpec, reference, tables
from metal_emulator.proofs.kernel_calls import Array
from support.hard_vectors import (
    LONGEST,
    SCALES,
    near_smallest_norm,
    on_and_next_to,
    patterns,
    vectors_on_boundaries,
)

# Odd, and five more than a multiple of eight: the last simdgroup and the last threadgroup are partial wherever they
# hold more than one vector; and more than one threadgroup of each.
ROWS = {64: 101, 128: 101, 256: 61, 512: 61}


@lru_cache
def hard_vectors(head_dim: int, dtype: str = "float32") -> Array:
    """Every pattern at several scales, zeros, and norms about the smallest, shuffled: `[ROWS, head_dim]`."""
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
    """The fewest of the vectors on boundaries that have every boundary and the floats beside it once."""
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
    """The codec whose scaled values are the vector's own, and whose indices can be read."""
    return Codec(bits, rotation="none", layout="byte", codebook=codebook).at(head_dim)
