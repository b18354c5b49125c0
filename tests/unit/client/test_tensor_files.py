"""Files of arrays that `hadakv put` reads: .npz, safetensors, and prompt caches of mlx-lm."""

import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import save

from hadakv_cli.tensor_files import read_kv, write_kv

K = np.random.default_rng(1).standard_normal((2, 3, 6, 64)).astype(np.float16)
V = -K


def mlx_lm_file(kinds: list[str], arrays: dict[str, Any] | None = None, strings: dict[str, str] | None = None) -> bytes:
    """Return a file as mlx-lm's `save_prompt_cache` writes it."""
    tensors = {f"{layer}.{i}": x[layer : layer + 1] for layer in range(2) for i, x in enumerate((K, V))}
    metadata = {f"2.{layer}": kind for layer, kind in enumerate(kinds)} | {"0.0": "", "0.1": "", "1.model": "tiny"}
    return save(tensors | (arrays or {}), metadata | (strings or {}))


def with_header(header: Any) -> bytes:
    """Return a safetensors file that is only a header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def read(content: bytes) -> Any:
    return read_kv(io.BytesIO(content), "file")


# NumPy's own format has no bfloat16.
WRITTEN: list[tuple[str, Any]] = [("npz", np.float16), ("npz", np.float32)]
WRITTEN += [("safetensors", dtype) for dtype in (np.float16, np.float32, bfloat16)]


@pytest.mark.parametrize(("kind", "dtype"), WRITTEN)
def test_written_arrays_are_read(kind: Any, dtype: Any) -> None:
    file = io.BytesIO()

    write_kv(file, {"k": K.astype(dtype), "v": V.astype(dtype)}, kind)

    found = read(file.getvalue())
    assert found.k.dtype == found.v.dtype == dtype
    np.testing.assert_array_equal(found.k, K.astype(dtype))
    np.testing.assert_array_equal(found.v, V.astype(dtype))


def test_plain_cache_of_mlx_lm_is_stacked_by_layer() -> None:
    found = read(mlx_lm_file(["KVCache", "KVCache"]))

    np.testing.assert_array_equal(found.k, K)
    np.testing.assert_array_equal(found.v, V)


@pytest.mark.parametrize("where", ["arrays", "strings"])
def test_padding_of_a_cache_of_mlx_lm_is_cut(where: str) -> None:
    sizes: dict[str, Any] = {
        "arrays": {f"{layer}.2": np.array([4], np.int32) for layer in range(2)},
        "strings": {"0.0": "4", "0.1": "4"},
    }

    found = read(mlx_lm_file(["KVCache", "KVCache"], **{where: sizes[where]}))

    np.testing.assert_array_equal(found.k, K[:, :, :4])


@pytest.mark.parametrize("own", [{}, {"0.0": "5", "0.model": "tiny"}], ids=["no metadata", "metadata of the user"])
def test_cache_of_mlx_lm_0_32_is_cut_at_its_offset(own: dict[str, str]) -> None:
    """Its metadata was read from a file that mlx-lm 0.32.2 wrote."""
    tensors = {f"{layer}.{i}": x[layer : layer + 1] for layer in range(2) for i, x in enumerate((K, V))}
    offsets = {f"{layer}.2": np.array(4, np.int32) for layer in range(2)}
    scalars = {"2.0": "", "2.1.0": "0.2", "2.1.1": "scalar", "2.2.0": "1.2", "2.2.1": "scalar"}

    found = read(save(tensors | offsets, {"1.0": "KVCache", "1.1": "KVCache"} | scalars | own))

    np.testing.assert_array_equal(found.k, K[:, :, :4])
    np.testing.assert_array_equal(found.v, V[:, :, :4])


def npz(compressed: bool = False, **given: Any) -> bytes:
    """Return a file of NumPy."""
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **given)
    return file.getvalue()


def damaged(content: bytes) -> bytes:
    """Return a file with other bytes in the middle of its first array."""
    return content[:300] + bytes(byte ^ 0x5A for byte in content[300:400]) + content[400:]


def claiming(shape: tuple[int, ...]) -> bytes:
    """Return a file of NumPy whose array k has a shape, but no elements."""
    file, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("k.npy", header.getvalue())
    return file.getvalue()


def zip_of(**texts: str) -> bytes:
    """Return a zip file of texts."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    return file.getvalue()


REFUSED: dict[str, tuple[bytes, str]] = {
    "rotating cache": (
        mlx_lm_file(["KVCache", "RotatingKVCache"]),
        "prompt cache of mlx-lm with KVCache, RotatingKVCache; only plain KVCache",
    ),
    "cache with more tokens than rows": (
        mlx_lm_file(["KVCache", "KVCache"], strings={"0.0": "9"}),
        "layer 0 has 6 rows, but its cache has 9 tokens",
    ),
    "cache without a layer": (mlx_lm_file(["KVCache"] * 3), "layers differ or are damaged"),
    "cache of layers that differ": (
        mlx_lm_file(["KVCache", "KVCache"], {"1.0": K[1:, :1]}),
        "layers differ or are damaged",
    ),
    "arrays of other names": (save({"keys": K}), "must have the arrays k and v, .* it has: keys"),
    "exported session": (save({"x": K}, {"format": "hadakv-session"}), "use: hadakv import file"),
    "text": (b"k and v", "neither an .npz nor a valid safetensors file"),
    "nothing": (b"", "neither an .npz nor a valid safetensors file"),
    "damaged zip": (b"PK\x03\x04 and nothing", "damaged .npz file"),
    "cut safetensors": (save({"k": K, "v": V})[:-1], "beyond the end of the file"),
    "huge header": ((1 << 62).to_bytes(8, "little") + b"{}", "no header"),
    "header that is a list": ((2).to_bytes(8, "little") + b"[]", "neither an .npz"),
    "damaged compressed array": (damaged(npz(compressed=True, k=K, v=V)), "damaged .npz file"),
    "array beyond all memory": (claiming((1 << 20, 1 << 20, 1 << 12)), "damaged .npz file"),
    "texts": (zip_of(k="k", v="v"), "k must be an array of float32, float16 or bfloat16"),
    "float64": (npz(k=K, v=V.astype(np.float64)), "v must be an array of float32, float16 or bfloat16"),
    "integers": (save({"k": K.astype(np.int32), "v": V}), "k must be an array of float32, float16 or bfloat16"),
    "metadata of wrong types": (
        with_header({"__metadata__": {"2.0": ["KVCache"]}}),
        "only plain KVCache layers can be stored",
    ),
    "number of tokens that is a number": (
        with_header({"__metadata__": {"2.0": "KVCache", "0.0": 5}}),
        "layers differ or are damaged",
    ),
    "infinitely many tokens": (
        mlx_lm_file(["KVCache", "KVCache"], {"0.2": np.array([np.inf], np.float32)}),
        "layers differ or are damaged",
    ),
    "negative offsets": (
        with_header({"k": {"dtype": "F16", "shape": [1], "data_offsets": [-2, 0]}}),
        "beyond the end of the file",
    ),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_other_file_is_refused_with_the_reason(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(content)


def test_pickled_arrays_are_refused() -> None:
    file = io.BytesIO()
    np.savez(file, k=np.array([{}], object), v=V)

    with pytest.raises(ValueError, match="damaged"):
        read(file.getvalue())
