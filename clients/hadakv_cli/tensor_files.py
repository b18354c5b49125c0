"""Files with arrays K and V: NumPy's .npz, and safetensors, also those of mlx-lm's `save_prompt_cache`."""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray

Format = Literal["npz", "safetensors"]
Arrays = Mapping[str, NDArray[Any]]

_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(bfloat16)}
_INTEGERS = {"I32": np.dtype(np.int32), "U32": np.dtype(np.uint32), "I64": np.dtype(np.int64)}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
# What NumPy, zipfile and JSON values of wrong types raise for a damaged file.
_DAMAGE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError),
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error),
)
_MAX_HEADER_NBYTES = 100 << 20
_ALIGNMENT = 8


class KeysAndValues(NamedTuple):
    """Keys and values of one prompt: `[layers, kv_heads, tokens, head_dim]`, float32, float16 or bfloat16."""

    k: NDArray[Any]
    v: NDArray[Any]


def read_kv(file: IO[bytes], name: str) -> KeysAndValues:
    """Read K and V.

    Args:
        file: the file, at its beginning.
        name: name of the file, for messages.

    Returns:
        the arrays `k` and `v` of the file, or those of a plain mlx-lm prompt cache, stacked by layer.

    Raises:
        ValueError: the file is of another kind, or lacks one of the arrays, or is damaged.
        OSError: the file cannot be read.
    """
    content = file.read()
    metadata: dict[str, str] = {}
    if content[:4] == b"PK\x03\x04":
        arrays = _read_npz(content, name)
    else:
        arrays, metadata = _read_safetensors(content, name)
    if metadata.get("format") == "hadakv-session":
        raise ValueError(f"{name} is an exported session; use: hadakv import {name}")
    if "k" in arrays and "v" in arrays:
        return _checked(KeysAndValues(arrays["k"], arrays["v"]), name)
    if "0.0" in arrays or "2.0" in metadata:
        return _checked(_mlx_lm_cache(arrays, metadata, name), name)
    found = ", ".join(sorted(arrays)[:8]) or "none"
    raise ValueError(f"{name} must have the arrays k and v, [layers, kv_heads, tokens, head_dim]; it has: {found}")


def _checked(kv: KeysAndValues, name: str) -> KeysAndValues:
    for stream, array in kv._asdict().items():
        if not isinstance(array, np.ndarray) or array.dtype not in _NAMES:
            raise ValueError(f"{name}: {stream} must be an array of float32, float16 or bfloat16")
    return kv


def write_kv(file: IO[bytes], arrays: Arrays, kind: Format) -> None:
    """Write arrays in one pass, also to a pipe.

    Args:
        file: where to write.
        arrays: `k` and `v`: float32, float16 or, for safetensors, bfloat16.
        kind: format of the file.
    """
    if kind == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, k=arrays["k"], v=arrays["v"])
        file.write(buffer.getbuffer())
        return
    header: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        header[name] = {"dtype": _NAMES[array.dtype], "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays.values():
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _read_npz(content: bytes, name: str) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
            return {key: loaded[key] for key in loaded.files}
    except _DAMAGE as error:
        raise ValueError(f"{name} is a damaged .npz file: {error}") from error


def _read_safetensors(content: bytes, name: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    length = int.from_bytes(content[:8], "little")
    start = 8 + length
    try:
        if not 2 <= length <= _MAX_HEADER_NBYTES or start > len(content):
            raise ValueError("no header")
        header: Any = json.loads(content[8:start])
        metadata = dict(header.pop(_METADATA, None) or {})
        arrays = {key: _tensor(entry, memoryview(content)[start:]) for key, entry in header.items()}
    except _DAMAGE as error:
        raise ValueError(f"{name} is neither an .npz nor a valid safetensors file: {error}") from error
    return arrays, metadata


def _tensor(entry: Any, data: memoryview) -> NDArray[Any]:
    """Return one tensor as a view. A tensor of a dtype that is neither float nor integer is an array of bytes."""
    first, last = entry["data_offsets"]
    if not 0 <= first <= last <= len(data):
        raise ValueError("a tensor lies beyond the end of the file")
    raw = np.frombuffer(data[first:last], np.uint8)
    dtype = (_DTYPES | _INTEGERS).get(entry["dtype"])
    return raw if dtype is None else raw.view(dtype).reshape(entry["shape"])


def _mlx_lm_cache(arrays: Arrays, metadata: Mapping[str, str], name: str) -> KeysAndValues:
    """Return K and V of a file by mlx-lm's `save_prompt_cache`.

    Its tensors are `LAYER.0` (keys) and `LAYER.1` (values), [1, kv_heads, tokens, head_dim]. Its metadata has the class
    of each layer's cache as `1.LAYER`, and an empty string as `2.0`. Older versions of mlx-lm have the class as
    `2.LAYER`, and strings of that cache as `0.LAYER`.
    """
    is_old = metadata.get("2.0") != ""
    of_class = re.compile(r"2\.\d+" if is_old else r"1\.\d+")
    kinds = {str(value) for key, value in metadata.items() if of_class.fullmatch(key)}
    if kinds != {"KVCache"}:
        found = ", ".join(sorted(kinds)) or "no kind of cache"
        raise ValueError(f"{name} is a prompt cache of mlx-lm with {found}; only plain KVCache layers can be stored")
    layers = sum(of_class.fullmatch(key) is not None for key in metadata)
    strings = metadata if is_old else {}
    try:
        streams = [[_mlx_lm_layer(arrays, strings, layer, stream) for layer in range(layers)] for stream in (0, 1)]
        return KeysAndValues(*(np.concatenate(stream) for stream in streams))
    except _DAMAGE as error:
        raise ValueError(f"{name} is a prompt cache of mlx-lm whose layers differ or are damaged: {error}") from error


def _mlx_lm_layer(arrays: Arrays, strings: Mapping[str, str], layer: int, stream: int) -> NDArray[Any]:
    array = arrays[f"{layer}.{stream}"]
    if array.ndim != 4 or array.shape[0] != 1:
        raise ValueError(f"layer {layer} has shape {array.shape}, expected [1, kv_heads, tokens, head_dim]")
    # The arrays may be longer than the prompt. The number of tokens is then a third part of the state, or a string.
    offset = arrays.get(f"{layer}.2")
    text = str(strings.get(f"0.{layer}", ""))
    tokens = int(offset.reshape(-1)[0]) if offset is not None else int(text) if text.isdecimal() else array.shape[2]
    if not 0 <= tokens <= array.shape[2]:
        raise ValueError(f"layer {layer} has {array.shape[2]} rows, but its cache has {tokens} tokens")
    return array[:, :, :tokens]
