"""Constant tables of the codec: codebooks, boundaries and signs, read once from `tables.npz`."""

import hashlib
from functools import cache, lru_cache
from importlib.resources import files
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

_REFERENCE_BITS = (4, 5, 6, 8)


@cache
def _archive() -> dict[str, NDArray[np.generic]]:
    blob = files(__package__).joinpath("tables.npz").read_bytes()
    with np.load(BytesIO(blob), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _quantizer(part: str, bits: int, codebook: str) -> NDArray[np.float32]:
    # The reference kernels have no tables for 2 and 3 bits. Use the converged ones.
    family = "mlx_native" if codebook == "mlx-native" and bits in _REFERENCE_BITS else "lloyd_max"
    table = np.ascontiguousarray(_archive()[f"{family}_{part}_{bits}bit"], dtype=np.float32)
    table.setflags(write=False)
    return table


@cache
def centroids(bits: int, codebook: str) -> NDArray[np.float32]:
    """Return the value of each index: float32 `[2**bits]`, ascending."""
    return _quantizer("codebook", bits, codebook)


@cache
def boundaries(bits: int, codebook: str) -> NDArray[np.float32]:
    """Return the thresholds between neighbouring indices: float32 `[2**bits - 1]`, ascending."""
    return _quantizer("boundaries", bits, codebook)


@lru_cache
def sign_bits(head_dim: int) -> NDArray[np.uint8]:
    """Return the random signs as bits, little-endian in each byte: uint8 `[head_dim // 8]`. 1 means minus."""
    name = "sign_bytes_512" if head_dim == 512 else "sign_bytes_256"
    return np.ascontiguousarray(_archive()[name][: head_dim // 8], dtype=np.uint8)


@lru_cache
def signs(head_dim: int) -> NDArray[np.float32]:
    """Return the random signs as factors: float32 `[head_dim]` of +1 and -1."""
    minus = np.unpackbits(sign_bits(head_dim), bitorder="little")
    factors = np.where(minus == 1, np.float32(-1), np.float32(1))
    factors.setflags(write=False)
    return factors


@cache
def fingerprint() -> str:
    """Return the SHA-256 of all tables, in hex. Sessions with another fingerprint must not be decoded.

    The hash covers, in this order: for each codebook (`mlx-native` first) and each number of bits (ascending), the
    centroids and then the boundaries, as little-endian float32; then the sign bits for head_dim 256, and those for 512.
    """
    digest = hashlib.sha256()
    for codebook in ("mlx-native", "lloyd-max"):
        for bits in (2, 3, 4, 5, 6, 8):
            digest.update(centroids(bits, codebook).astype("<f4").tobytes())
            digest.update(boundaries(bits, codebook).astype("<f4").tobytes())
    for head_dim in (256, 512):
        digest.update(sign_bits(head_dim).tobytes())
    return digest.hexdigest()
