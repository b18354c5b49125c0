"""Keys and values of an append: arrays, lists of arrays, caches of mlx-lm, and rows of zeros at their end."""

import tracemalloc
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hadakv_client.http.body import Body
from hadakv_client.http.kv import KeysValues, keys_values
from hadakv_client.http.tensors import LayerArrays

LAYERS, HEADS, TOKENS, DIM = 3, 2, 5, 64
ROWS = 12


def numbers(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float16)


def cache(rows: int = ROWS, offset: int = TOKENS, **attributes: Any) -> Any:
    """Return an object like mlx-lm's KVCache: rows from `offset` on are zero."""
    arrays = {name: np.zeros((1, HEADS, rows, DIM), np.float16) for name in ("keys", "values")}
    for array in arrays.values():
        array[:, :, :offset] = numbers(1, HEADS, offset, DIM)
    return SimpleNamespace(**arrays, offset=offset, **attributes)


def sent(array: LayerArrays) -> Any:
    """Return the array as the body has it."""
    elements = np.frombuffer(b"".join(piece.tobytes() for piece in array.pieces()), array.dtype)
    return elements.reshape(array.shape)


def assert_sends(kv: KeysValues, k: Any, v: Any) -> None:
    assert np.array_equal(sent(kv.k), k)
    assert np.array_equal(sent(kv.v), v)


K, V = numbers(LAYERS, HEADS, TOKENS, DIM), numbers(LAYERS, HEADS, TOKENS, DIM) + 1


@pytest.mark.parametrize("k", [K[0, 0], K[None]])
def test_keys_need_three_or_four_axes(k: Any) -> None:
    with pytest.raises(ValueError, match=r"k must be \[layers, kv_heads, tokens, head_dim\]"):
        keys_values(k, V)


@pytest.mark.parametrize("batch", [(), (1,)], ids=["layer", "batch of one"])
def test_list_of_arrays_is_sent_like_one_array(batch: tuple[int, ...]) -> None:
    k, v = ([x.reshape(*batch, *x.shape) for x in whole] for whole in (K, V))

    assert_sends(keys_values(k, v), K, V)


def test_list_of_mlx_arrays_is_sent_like_one_array() -> None:
    mx = pytest.importorskip("mlx.core")
    k, v = ([mx.array(x).astype(mx.bfloat16) for x in whole] for whole in (K, V))

    assert_sends(keys_values(k, v), K.astype(ml_dtypes.bfloat16), V.astype(ml_dtypes.bfloat16))


def test_caches_are_cut_at_their_offset() -> None:
    caches = [cache() for _ in range(LAYERS)]
    for each, k, v in zip(caches, K, V, strict=True):
        each.keys[:, :, :TOKENS], each.values[:, :, :TOKENS] = k, v

    assert_sends(keys_values(caches), K, V)
    assert_sends(keys_values(caches[1]), K[1:2], V[1:2])


def test_mlx_caches_are_cut_at_their_offset() -> None:
    mx = pytest.importorskip("mlx.core")
    caches = [cache() for _ in range(LAYERS)]
    expected = [np.concatenate([getattr(each, name) for each in caches]) for name in ("keys", "values")]
    for each in caches:
        each.keys, each.values = mx.array(each.keys), mx.array(each.values)

    assert_sends(keys_values(caches), *(x[:, :, :TOKENS] for x in expected))


def test_rows_of_a_cache_are_tokens_at_their_positions() -> None:
    kv = keys_values(cache())

    assert_sends(kv.from_position(3), *(sent(x)[:, :, 3:] for x in (kv.k, kv.v)))
    assert kv.from_position(TOKENS).tokens == 0
    with pytest.raises(ValueError, match="the cache has 5 tokens and none at position 6"):
        kv.from_position(6)
    with pytest.raises(ValueError, match='instead of "end"'):
        kv.from_position("end")


@pytest.mark.parametrize("layout", ["C order", "padded", "transposed"])
@pytest.mark.parametrize("as_list", [False, True], ids=["array", "list"])
def test_part_has_the_same_elements_in_any_layout(layout: str, as_list: bool) -> None:
    x = numbers(LAYERS, HEADS, ROWS, DIM)
    if layout == "transposed":
        x = np.ascontiguousarray(x.transpose(2, 0, 3, 1)).transpose(1, 3, 0, 2)
    elif layout == "padded":
        x = np.concatenate([x, x], axis=2)[:, :, :ROWS]
    kv = keys_values(list(x), list(x)) if as_list else keys_values(x, x)

    part = kv.part(slice(1, 3), slice(2, 7))

    assert_sends(part, x[1:3, :, 2:7], x[1:3, :, 2:7])
    assert (part.layers, part.tokens, part.nbytes) == (2, 5, 2 * x[1:3, :, 2:7].nbytes)


@pytest.mark.parametrize("rows", [1024, 1025], ids=["whole", "padded"])
def test_body_of_a_list_is_not_copied(rows: int) -> None:
    k = [np.ones((4, rows, 256), np.float16)[:, :1024] for _ in range(4)]
    kv = keys_values(k, k)
    tracemalloc.start()

    nbytes = sum(map(len, Body({"k": kv.k, "v": kv.v})))

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert nbytes > kv.nbytes
    assert peak < kv.nbytes // 16


@pytest.mark.parametrize("tokens", [1, 3, 40, 3000])
def test_chunks_of_a_padded_cache_are_neither_tiny_nor_large(tokens: int) -> None:
    kv = keys_values([cache(4096, tokens) for _ in range(LAYERS)])
    body = Body({"k": kv.k, "v": kv.v})

    chunks = list(map(len, body))

    assert sum(chunks) == body.nbytes
    assert max(chunks) <= 1 << 20
    assert len(chunks) <= 1 + body.nbytes // 30_000


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_zero_tokens_at_the_end_are_refused(dtype: Any) -> None:
    k, v = (np.concatenate([x, -np.zeros_like(x)], axis=2).astype(dtype) for x in (K, V))

    with pytest.raises(ValueError, match="the last 5 of 10 tokens are zero"):
        keys_values(k, v)
    with pytest.raises(ValueError, match="the last 5 of 10 tokens are zero"):
        keys_values(list(k), list(v))
    assert keys_values(k, v, allow_zeros=True).tokens == 10


def test_zero_tokens_are_counted_over_long_arrays() -> None:
    x = np.zeros((1, 1, 1000, 64), np.float16)
    x[0, 0, 300, 5] = 1

    with pytest.raises(ValueError, match="the last 699 of 1000 tokens"):
        keys_values(x, x)
    with pytest.raises(ValueError, match="the last 1000 of 1000 tokens"):
        keys_values(0 * x, 0 * x)


def test_one_element_makes_the_last_token_a_token() -> None:
    for place in (0, 1):
        kv = [np.zeros((LAYERS, HEADS, TOKENS, DIM), np.float16) for _ in range(2)]
        kv[place][LAYERS - 1, HEADS - 1, TOKENS - 1, DIM - 1] = np.nan

        assert keys_values(*kv).tokens == TOKENS


def test_no_tokens_are_not_zero_tokens() -> None:
    assert keys_values(K[:, :, :0], V[:, :, :0]).tokens == 0
    assert keys_values(K[:0], V[:0]).layers == 0


KV_LIST = list(K)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((K,), TypeError, "v is missing: the cache is ndarray, not a cache of mlx-lm"),
        ((KV_LIST,), TypeError, "v is missing: cache 0 of the list is ndarray"),
        (("abc",), TypeError, r"the cache is str\. It must have keys, values and offset"),
        (([],), ValueError, "the list of caches is empty"),
        (([cache(), SimpleNamespace(cache=[])],), TypeError, "cache 1 of the list is SimpleNamespace"),
        ((cache(bits=4),), ValueError, "the cache is quantized"),
        ((cache(max_size=4),), ValueError, "the cache is rotating"),
        ((cache(chunk_size=4),), ValueError, "the cache is chunked"),
        ((cache(left_padding=None),), ValueError, "the cache is batched"),
        ((SimpleNamespace(keys=None, values=None, offset=0),), ValueError, "the cache is empty"),
        ((cache(offset=0),), ValueError, "the cache has offset 0, but its arrays have 12 rows"),
        (([cache(), cache(offset=4)],), ValueError, "cache 1 of the list has 4 tokens, but cache 0 of the list has 5"),
        ((KV_LIST, KV_LIST[:2]), ValueError, "k has 3 layers, v has 2"),
        (([], []), ValueError, "k has no layers"),
        ((KV_LIST, K), TypeError, "k must be a NumPy array"),
        ((K, KV_LIST), TypeError, "v must be a NumPy array"),
        (
            ([K[0], K[0, :1]], KV_LIST[:2]),
            ValueError,
            r"k\[1\] is float16 \[1, 5, 64\], but k\[0\] is float16 \[2, 5, 64\]",
        ),
        (([K[0], K[0].astype(np.float32)], KV_LIST[:2]), ValueError, r"k\[1\] is float32"),
        (([K[:2]], [K[:2]]), ValueError, r"k\[0\] has a batch of 2 sequences"),
        (([K[0, 0]], [K[0, 0]]), ValueError, r"k\[0\] must be \[kv_heads, tokens, head_dim\]"),
        (([1.5], [2.5]), TypeError, r"k\[0\] must be a NumPy array or an mlx.core.array, not float"),
    ],
)
def test_other_input_raises(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        keys_values(*arguments)


def test_cache_with_more_tokens_than_rows_raises() -> None:
    wrapped = cache(ROWS)
    wrapped.offset = ROWS + 1

    with pytest.raises(ValueError, match="the cache has offset 13, but its arrays have 12 rows"):
        keys_values(wrapped)


@pytest.mark.parametrize("shape", [(1, 0, 3, 64), (1, 2, 3, 0), (0, 2, 3, 64), (1, 2, 0, 64)])
def test_arrays_without_elements_have_no_zero_tokens(shape: tuple[int, ...]) -> None:
    empty = np.zeros(shape, np.float16)

    assert keys_values(empty, empty).nbytes == 0


def test_masked_arrays_are_rejected() -> None:
    masked = np.ma.masked_array(np.ones((1, 2, 3, 64), np.float16), mask=True)

    with pytest.raises(TypeError, match="k is a masked array"):
        keys_values(masked, masked)
