"""Tokens that sessions are made of: a few hundred of each shape, encoded once by the reference.

A vector is encoded by itself, so what a session has to hold is so many of them side by side.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import DTYPES, Codec, Encoded, reference

Numbers = NDArray[np.intp]

TOKENS = 256


@dataclass(frozen=True)
class Shape:
    """What the tokens of a session are like.

    Attributes:
        layers: how many there are at most.
        codecs: of k and of v.
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
    """Tokens of one shape.

    Args:
        shape: theirs.
        seed: what they are made from.

    Attributes:
        shape: theirs.
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
        """K and V `[layers, kv_heads, tokens, head_dim]` of some tokens."""
        k, v = (np.ascontiguousarray(values[layers][:, :, numbers]) for values in self._values)
        return k, v

    def difference(self, layers: slice, numbers: Numbers, k: Encoded, v: Encoded) -> tuple[int, str]:
        """Compare what came back with what those tokens are.

        Returns:
            bytes compared; and what is wrong, nothing if all is well.
        """
        nbytes = 0
        for name, found, stored in zip("kv", (k, v), self._stored, strict=True):
            for part in ("packed", "norms"):
                wanted = getattr(stored, part)[layers][:, :, numbers]
                got = np.ascontiguousarray(getattr(found, part))
                if got.shape != wanted.shape or got.dtype != wanted.dtype:
                    return nbytes, f"{name}.{part} is {got.dtype} {got.shape} and not {wanted.dtype} {wanted.shape}"
                unlike = (got.view(np.uint8) != wanted.view(np.uint8)).any(axis=(1, 3)) if got.size else np.zeros(1)
                if unlike.any():
                    layer, token = np.argwhere(unlike)[0]
                    return nbytes, f"{name}.{part} has other bytes at layer {layer}, token {token} of what was read"
                nbytes += got.nbytes
        return nbytes, ""
