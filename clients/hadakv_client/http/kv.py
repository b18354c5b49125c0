"""Keys and values of an append: arrays, lists with an array for each layer, or caches of mlx-lm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any

from hadakv_client.http.arguments import Position, integer
from hadakv_client.http.tensors import Array, LayerArrays, to_view

# Attributes that caches other than KVCache have, and why their rows are not the tokens in order.
_OTHER_CACHES = {
    "bits": "quantized",
    "max_size": "rotating",
    "chunk_size": "chunked",
    "left_padding": "batched",
}
_AXES = "[layers, kv_heads, tokens, head_dim], or [kv_heads, tokens, head_dim]"
# Tokens to look at in one step when zero tokens are counted for an error message.
_SCAN_TOKENS = 256


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values to append, as views of the caller's arrays.

    Attributes:
        k: keys `[layers, kv_heads, tokens, head_dim]`.
        v: values with these layers and tokens; the service checks the other axes and the dtype.
        is_cache: whether row p is the token at position p, as in a cache of mlx-lm.
    """

    k: LayerArrays
    v: LayerArrays
    is_cache: bool = False

    @property
    def layers(self) -> int:
        """Return the number of layers."""
        return len(self.k)

    @property
    def tokens(self) -> int:
        """Return the number of tokens."""
        return self.k.tokens

    @property
    def nbytes(self) -> int:
        """Return the size of both in bytes."""
        return self.k.nbytes + self.v.nbytes

    def part(self, layers: slice, tokens: slice) -> "KeysValues":
        """Return some tokens of some layers, as views."""
        return replace(self, k=self.k.part(layers, tokens), v=self.v.part(layers, tokens))

    def from_position(self, position: Position) -> "KeysValues":
        """Return the rows of a cache from a position on.

        Raises:
            ValueError: the cache has no row for the position.
        """
        if position == "end":
            raise ValueError('a cache has its positions: pass a number or None instead of "end"')
        if not 0 <= integer(position, "position") <= self.tokens:
            raise ValueError(
                f"the cache has {self.tokens} tokens and none at position {position}. If the session has more tokens "
                "than the cache, truncate it, or pass position=0 to compare both"
            )
        return self.part(slice(None), slice(integer(position, "position"), None))


def keys_values(k: Any, v: Any = None, *, allow_zeros: bool = False) -> KeysValues:
    """Return keys and values that can be sent.

    Args:
        k: array `[layers, kv_heads, tokens, head_dim]` or `[kv_heads, tokens, head_dim]`; a list with an array for each
            layer, `[kv_heads, tokens, head_dim]` or `[1, kv_heads, tokens, head_dim]`; or, without v, a cache of mlx-lm
            or a list with one for each layer.
        v: values in the same form; None for caches.
        allow_zeros: whether the last tokens may be zero in k and v of every layer and head.

    Raises:
        TypeError: k or v is not an array of float32, float16 or bfloat16, nor a list of these, nor a cache of mlx-lm.
        ValueError: the axes do not fit, the layers differ, a cache is empty or of another kind than `KVCache`, or the
            last tokens are zero.
    """
    if v is None:
        kv = _from_caches(k if isinstance(k, list | tuple) else [k])
    elif isinstance(k, list | tuple) and isinstance(v, list | tuple):
        if len(k) != len(v):
            raise ValueError(f"k has {len(k)} layers, v has {len(v)}")
        kv = KeysValues(_from_list(k, "k"), _from_list(v, "v"))
    else:
        kv = KeysValues(_from_array(k, "k"), _from_array(v, "v"))
    if not allow_zeros:
        _check_last_token(kv)
    return kv


def _from_array(x: Any, name: str) -> LayerArrays:
    array = to_view(x, name)
    if array.ndim not in (3, 4):
        raise ValueError(f"{name} must be {_AXES}, not {list(array.shape)}")
    return LayerArrays([array if array.ndim == 4 else array[None]])


def _from_list(xs: Sequence[Any], name: str) -> LayerArrays:
    """Return the arrays of a list, one for each layer."""
    if not xs:
        raise ValueError(f"{name} has no layers")
    names = [f"{name}[{i}]" for i in range(len(xs))]
    arrays = [_layer(to_view(x, each), each) for x, each in zip(xs, names, strict=True)]
    first = arrays[0]
    for array, each in zip(arrays, names, strict=True):
        if (array.shape, array.dtype) != (first.shape, first.dtype):
            raise ValueError(
                f"{each} is {array.dtype} {list(array.shape[1:])}, but {names[0]} is {first.dtype} "
                f"{list(first.shape[1:])}. Append layers that differ separately, with layer="
            )
    return LayerArrays(arrays)


def _layer(array: Array, name: str) -> Array:
    """Return the array of one layer with a layer axis in place of the batch axis, if it has one."""
    if array.ndim == 4 and len(array) != 1:
        raise ValueError(f"{name} has a batch of {len(array)} sequences. A session holds one: pass {name}[i]")
    if array.ndim not in (3, 4):
        raise ValueError(f"{name} must be [kv_heads, tokens, head_dim], not {list(array.shape)}")
    return array if array.ndim == 4 else array[None]


def _from_caches(caches: Sequence[Any]) -> KeysValues:
    if not caches:
        raise ValueError("the list of caches is empty")
    names = _cache_names(len(caches))
    for i, cache in enumerate(caches):
        _check_cache(cache, names(i))
    offsets = [index(cache.offset) for cache in caches]
    for i, offset in enumerate(offsets):
        if offset != offsets[0]:
            raise ValueError(f"{names(i)} has {offset} tokens, but {names(0)} has {offsets[0]}")
    whole = [_from_list([getattr(cache, name) for cache in caches], name) for name in ("keys", "values")]
    rows = min(each.tokens for each in whole)
    if not 0 < offsets[0] <= rows:
        raise ValueError(f"{names(0)} has offset {offsets[0]}, but its arrays have {rows} rows")
    tokens = slice(0, offsets[0])
    k, v = (each.part(slice(None), tokens) for each in whole)
    return KeysValues(k, v, is_cache=True)


def _cache_names(layers: int) -> Callable[[int], str]:
    return lambda i: "the cache" if layers == 1 else f"cache {i} of the list"


def _check_cache(cache: Any, name: str) -> None:
    """Check that a cache is like mlx-lm's KVCache: rows 0 to `offset` are its tokens in order."""
    kind = type(cache).__name__
    if hasattr(cache, "shape"):
        raise TypeError(f"v is missing: {name} is {kind}, not a cache of mlx-lm")
    if not all(hasattr(cache, attribute) for attribute in ("keys", "values", "offset")):
        raise TypeError(f"{name} is {kind}. It must have keys, values and offset, like mlx-lm's KVCache")
    for attribute, word in _OTHER_CACHES.items():
        if hasattr(cache, attribute):
            raise ValueError(f"{name} is {word} ({kind}). Only caches like KVCache can be appended as they are")
    if cache.keys is None or cache.values is None:
        raise ValueError(f"{name} is empty: run the model on the prompt first")


def _check_last_token(kv: KeysValues) -> None:
    """Reject rows of zeros at the end. They are the unused rows of a cache, not tokens."""

    def is_zero(tokens: slice) -> bool:
        return kv.k.is_zero(tokens) and kv.v.is_zero(tokens)

    if not (kv.nbytes and is_zero(slice(-1, None))):
        return
    stop = kv.tokens
    while stop and is_zero(slice(max(stop - _SCAN_TOKENS, 0), stop)):
        stop = max(stop - _SCAN_TOKENS, 0)
    while stop and is_zero(slice(stop - 1, stop)):
        stop -= 1
    raise ValueError(
        f"the last {kv.tokens - stop} of {kv.tokens} tokens are zero in k and v of every layer and head. A cache of "
        "mlx-lm has more rows than tokens: pass the cache itself, or cut its arrays at its offset. "
        "allow_zeros=True stores these tokens"
    )
