"""Codecs, forms and arrays for tests of sessions, and the responses expected for them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import DTYPES, Codec, reference
from support.contract import Json, tensor

# TTL of sessions in a service that sets one.
TTL_SECONDS = 3600.0

RNG = np.random.default_rng(3)
DEFAULT = Codec()
CODECS = [
    Codec(),
    Codec(bits=2, norm="unbiased"),
    Codec(bits=3, codebook="lloyd-max"),
    Codec(bits=5, layout="byte"),
    Codec(bits=8, rotation="none"),
    Codec(kind="float16"),
]
FORMS = ("float32", "float16", "bfloat16", "rotated")


def values(layers: int, heads: int, tokens: int, head_dim: int = 64, *, dtype: str = "float16") -> NDArray[Any]:
    """Return normal values `[layers, heads, tokens, head_dim]`."""
    return RNG.standard_normal((layers, heads, tokens, head_dim)).astype(DTYPES[dtype])


def pair(
    layers: int, heads: int, tokens: int, head_dim: int = 64, *, dtype: str = "float16"
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return K and V of one shape and dtype."""
    k, v = (values(layers, heads, tokens, head_dim, dtype=dtype) for _ in "kv")
    return k, v


def decoded(x: NDArray[Any], codec: Codec, form: str) -> Json:
    """Return the expected result of reading an array in a form."""
    spec = codec.at(x.shape[-1])
    dtype, inverse = ("float32", False) if form == "rotated" else (form, True)
    return {"values": tensor(reference.decode(reference.encode(x, spec), spec, dtype, inverse=inverse))}


def row_nbytes(codec: Codec, head_dim: int) -> int:
    """Return the stored bytes of a vector, including its norms."""
    spec = codec.at(head_dim)
    return spec.row_bytes + 4 * spec.norms
