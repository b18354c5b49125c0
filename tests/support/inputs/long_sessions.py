"""Keys and values of 10,000 tokens, and the reference's encoding of them, computed once."""

from functools import cache
from typing import Any

import numpy as np

from hadakv_kernels import Codec, Encoded, reference

LAYERS, HEADS, TOKENS, DIM = 2, 1, 10_000, 64


@cache
def long_array(stream: str) -> Any:
    """Return keys ("k") or values ("v"): float16 `[LAYERS, HEADS, TOKENS, DIM]`."""
    rng = np.random.default_rng(ord(stream))
    return rng.standard_normal((LAYERS, HEADS, TOKENS, DIM)).astype(np.float16)


@cache
def _whole(stream: str, codec: Codec, form: str) -> Any:
    spec = codec.at(DIM)
    if form == "packed":
        return reference.encode(long_array(stream), spec)
    dtype = "float32" if form == "rotated" else form
    return reference.decode(_whole(stream, codec, "packed"), spec, dtype, inverse=form != "rotated")


def expected(stream: str, tokens: slice, codec: Codec | None = None, form: str = "packed") -> Any:
    """Return some tokens of all layers as a session must return them."""
    whole = _whole(stream, codec or Codec(), form)
    if isinstance(whole, Encoded):
        return Encoded(whole.packed[:, :, tokens], whole.norms[:, :, tokens])
    return whole[:, :, tokens]
