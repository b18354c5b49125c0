"""The codec's constant tables: codebooks, boundaries and signs, read once from `tables.npz`."""

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


@cache
def fingerprint() -> str:
    """SHA-256 in hex over every table, in order of their names: what was packed with others cannot be read here."""
    digest = hashlib.sha256()
    for name, table in sorted(_archive().items()):
        digest.update(f"{name} {table.dtype.str} {table.shape}\n".encode())
        digest.update(np.ascontiguousarray(table).tobytes())
    return digest.hexdigest()


def _quantizer(part: str, bits: int, codebook: str) -> NDArray[np.float32]:
    # The reference kernels have no 2- and 3-bit tables; the converged ones stand in.
    family = "mlx_native" if codebook == "mlx-native" and bits in _REFERENCE_BITS else "lloyd_max"
    table = np.ascontiguousarray(_archive()[f"{family}_{part}_{bits}bit"], dtype=np.float32)
    table.setflags(write=False)
    return table


@cache
def centroids(bits: int, codebook: str) -> NDArray[np.float32]:
    """The value each index stands for: float32 `[2**bits]`, ascending."""
    return _quantizer("codebook", bits, codebook)


@cache
def boundaries(bits: int, codebook: str) -> NDArray[np.float32]:
    """The decision thresholds between neighbouring indices: float32 `[2**bits - 1]`, ascending."""
    return _quantizer("boundaries", bits, codebook)


@lru_cache
def sign_bits(head_dim: int) -> NDArray[np.uint8]:
    """The random signs as bits, little-endian in each byte: uint8 `[head_dim // 8]`; 1 means minus."""
    name = "sign_bytes_512" if head_dim == 512 else "sign_bytes_256"
    return np.ascontiguousarray(_archive()[name][: head_dim // 8], dtype=np.uint8)


@lru_cache
def signs(head_dim: int) -> NDArray[np.float32]:
    """The random signs as factors: float32 `[head_dim]` of +1 and -1."""
    minus = np.unpackbits(sign_bits(head_dim), bitorder="little")
    factors = np.where(minus == 1, np.float32(-1), np.float32(1))
    factors.setflags(write=False)
    return factors
