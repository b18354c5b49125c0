"""Codec options as they are sent over HTTP, and the sizes of a codec at a head_dim."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from hadakv_kernels.errors import UnsupportedCodec, UnsupportedShape

HEAD_DIMS = (64, 128, 256, 512)
BITS = (2, 3, 4, 5, 6, 8)
CHOICES = {
    "rotation": ("hadamard", "none"),
    "layout": ("dense", "byte"),
    "codebook": ("mlx-native", "lloyd-max"),
    "norm": ("exact", "unbiased"),
    "kind": ("quantized", "float16"),
}


@dataclass(frozen=True)
class Codec:
    """Options for storing one stream (K or V). Every combination of them is valid.

    Attributes:
        bits: bits per element: 2, 3, 4, 5, 6 or 8.
        rotation: `"hadamard"` rotates each vector (random signs, Walsh-Hadamard transform) before quantization, which
            spreads outliers over all elements; `"none"` does not rotate.
        layout: `"dense"` is a little-endian bit stream; `"byte"` uses one byte per index.
        codebook: `"mlx-native"` uses the tables of the reference kernels, `"lloyd-max"` converged ones.
        norm: `"exact"` stores the vector's norm; `"unbiased"` stores the value for which the projection of the decoded
            vector on the original is exact.
        kind: `"float16"` stores the vector as float16, unquantized, and ignores all other options.
        d512_scale: ablation factor of the reference kernels for head_dim 512. Any value but 1.0 ruins the result.

    Raises:
        UnsupportedCodec: an option has an invalid value.
    """

    bits: int = 4
    rotation: str = "hadamard"
    layout: str = "dense"
    codebook: str = "mlx-native"
    norm: str = "exact"
    kind: str = "quantized"
    d512_scale: float = 1.0

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in BITS:
            raise UnsupportedCodec("bits", f"must be one of {', '.join(map(str, BITS))}, not {self.bits!r}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                choices = " or ".join(f'"{choice}"' for choice in allowed)
                raise UnsupportedCodec(name, f"must be {choices}, not {getattr(self, name)!r}")
        object.__setattr__(self, "d512_scale", _float32_scale(self.d512_scale))

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> "Codec":
        """Build a codec from a mapping of options. Missing options have their defaults.

        Raises:
            UnsupportedCodec: an option is unknown, or its value is invalid.
        """
        known = {field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                raise UnsupportedCodec(str(name), f"unknown option: options are {', '.join(sorted(known))}")
        return cls(**options)

    def to_mapping(self) -> dict[str, Any]:
        """Return the options as a mapping. `d512_scale` is left out if it is 1.0."""
        options = asdict(self)
        if self.d512_scale == 1.0:
            del options["d512_scale"]
        return options

    def at(self, head_dim: int) -> "CodecSpec":
        """Return the codec for vectors of `head_dim` elements."""
        return _spec(self, head_dim)


@lru_cache(maxsize=256)
def _spec(codec: Codec, head_dim: int) -> "CodecSpec":
    # Share one instance per codec and head_dim, because it caches its sizes.
    return CodecSpec(codec, head_dim)


def _float32_scale(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3.0e38:
        scale = float(np.float32(value))
        if math.isfinite(scale) and scale > 0:
            return scale
    raise UnsupportedCodec("d512_scale", f"must be a positive finite number, not {value!r}")


@dataclass(frozen=True)
class CodecSpec:
    """A codec at a head_dim: all sizes and constants of the arithmetic.

    Raises:
        UnsupportedShape: head_dim is not one of `HEAD_DIMS`.
    """

    codec: Codec
    head_dim: int

    def __post_init__(self) -> None:
        if self.head_dim not in HEAD_DIMS:
            allowed = ", ".join(map(str, HEAD_DIMS))
            raise UnsupportedShape(f"head_dim must be one of {allowed}, not {self.head_dim}")

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one packed vector, without its norms."""
        if self.codec.kind == "float16":
            return 2 * self.head_dim
        if self.codec.layout == "byte":
            return self.head_dim
        return self.head_dim * self.codec.bits // 8

    @cached_property
    def norms(self) -> int:
        """Number of norms of one vector: 0 for float16, 2 for head_dim 512, otherwise 1."""
        return 0 if self.codec.kind == "float16" else self.blocks

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one stored vector, including its norms."""
        return self.row_bytes + 4 * self.norms

    @cached_property
    def blocks(self) -> int:
        """Number of blocks of a vector. Each block is normalised separately."""
        return 2 if self.head_dim == 512 else 1

    @cached_property
    def block_dim(self) -> int:
        """Number of elements of one block."""
        return self.head_dim // self.blocks

    @cached_property
    def inv_sqrt(self) -> np.float32:
        """`1 / sqrt(head_dim)`, which makes the transform orthogonal."""
        return np.float32(1.0 / math.sqrt(self.head_dim))

    @cached_property
    def gain(self) -> np.float32:
        """Factor that, together with `1 / norm`, scales a block to unit variance."""
        return np.float32(self.codec.d512_scale if self.blocks == 2 else math.sqrt(self.head_dim))
