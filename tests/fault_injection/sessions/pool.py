"""Tokens for sessions: a few hundred of each shape, encoded once by the reference.

Each vector is encoded independently, so the expected content of a session is a sequence of encoded tokens.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import DTYPES, Codec, Encoded, reference

Numbers = NDArray[np.intp]

TOKENS = 256


@dataclass(frozen=True)
class Shape:
    """Shape of the tokens of a session.

    Attributes:
        layers: maximum number of layers.
        kv_heads: heads of k and v.
        head_dim: elements of a vector.
        dtype: dtype of the values sent.
        codecs: codecs of k and v.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    codecs: tuple[Codec, Codec]


SHAPES = (
    Shape(2, 2, 64, "float16", (Codec(), Codec())),
    Shape(3, 1, 128, "float32", (Codec(bits=8), Codec(bits=3, norm="unbiased"))),
    Shape(4, 2, 256, "bfloat16", (Codec(codebook="lloyd-max"), Codec(bits=2))),
    Shape(1, 2, 512, "float16", (Codec(bits=6), Codec(bits=5, layout="byte"))),
    Shape(2, 1, 64, "float16", (Codec(kind="float16"), Codec(bits=8, rotation="none"))),
)


class Pool:
    """Pool of tokens of one shape.

    Args:
        shape: shape of the tokens.
        seed: random seed.

    Attributes:
        shape: shape of the tokens.
    """

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        rng = np.random.default_rng(seed)
        axes = (2, shape.layers, shape.kv_heads, TOKENS, shape.head_dim)
        self._values = rng.standard_normal(axes, np.float32).astype(DTYPES[shape.dtype])
        self._stored = [
            reference.encode(values, codec.at(shape.head_dim))
            for values, codec in zip(self._values, shape.codecs, strict=True)
        ]

    def values(self, layers: slice, numbers: Numbers) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
        """Return K and V of some tokens, each `[layers, kv_heads, tokens, head_dim]`."""
        k, v = (np.ascontiguousarray(values[layers][:, :, numbers]) for values in self._values)
        return k, v

    def difference(self, layers: slice, numbers: Numbers, k: Encoded, v: Encoded) -> tuple[int, str]:
        """Compare encoded tokens with the reference.

        Returns:
            The number of bytes compared, and the first difference in words, empty if there is none.
        """
        nbytes = 0
        for name, found, stored in zip("kv", (k, v), self._stored, strict=True):
            for part in ("packed", "norms"):
                wanted = getattr(stored, part)[layers][:, :, numbers]
                got = np.ascontiguousarray(getattr(found, part))
                if got.shape != wanted.shape or got.dtype != wanted.dtype:
                    return nbytes, f"{name}.{part} is {got.dtype} {got.shape}, expected {wanted.dtype} {wanted.shape}"
                unlike = (got.view(np.uint8) != wanted.view(np.uint8)).any(axis=(1, 3)) if got.size else np.zeros(1)
                if unlike.any():
                    layer, token = np.argwhere(unlike)[0]
                    return nbytes, f"{name}.{part} differs at layer {layer}, token {token} of the range read"
                nbytes += got.nbytes
        return nbytes, ""
