"""Conversion between arrays and tensors in messages. Avoids copies."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_client.errors import ProtocolError
from hadakv_kernels import DTYPES

Array = NDArray[Any]
WIRE_DTYPES = {**DTYPES, "uint8": np.dtype(np.uint8)}
DTYPE_NAMES = {dtype: name for name, dtype in WIRE_DTYPES.items()}

# Limit of NumPy.
_MAX_AXES = 64
# No memory holds a longer axis.
_AXIS_LIMIT = 1 << 48


def to_numpy(x: Any, name: str, *allowed: str) -> Array:
    """Return a C-order array that can be sent. It shares memory with x if x is in C order.

    Args:
        x: a NumPy array or an `mlx.core.array`.
        name: argument name for the error message.
        allowed: names of allowed dtypes; without any, float32, float16 and bfloat16.

    Raises:
        TypeError: x is not such an array, or its dtype is not allowed.
        ValueError: x is big-endian or has no axes.
    """
    return np.ascontiguousarray(to_view(x, name, *allowed))


def to_view(x: Any, name: str, *allowed: str) -> Array:
    """Return an array over the memory of x, in any order of elements. Arguments and errors are those of `to_numpy`."""
    array = _from_mlx(x) if type(x).__module__ == "mlx.core" else x
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array or an mlx.core.array, not {type(x).__name__}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, and its masked elements have no value: use filled()")
    if not array.dtype.isnative:
        raise ValueError(f"{name} must have native byte order: x.astype(x.dtype.newbyteorder('='))")
    names = allowed or tuple(DTYPES)
    if DTYPE_NAMES.get(array.dtype) not in names:
        raise TypeError(f"{name} must be {' or '.join(names)}, not {array.dtype}")
    if array.ndim == 0:
        raise ValueError(f"{name} has no axes")
    return array


def _from_mlx(x: Any) -> Array:
    import mlx.core as mx

    if x.dtype == mx.bfloat16:
        # NumPy has no bfloat16, so convert the bits as uint16.
        return np.asarray(x.view(mx.uint16)).view(DTYPES["bfloat16"])
    return np.asarray(x)


class LayerArrays:
    """Keys or values of consecutive layers: views of the caller's arrays, which are sent one by one.

    Args:
        blocks: arrays `[layers, kv_heads, tokens, head_dim]` of one dtype, with the same axes after the first. Their
            layers follow each other. Either there is one array, or each has one layer.

    Attributes:
        shape: axes of all layers together, `[layers, kv_heads, tokens, head_dim]`.
        dtype: dtype of the elements.
        nbytes: size in bytes.
    """

    def __init__(self, blocks: Sequence[Array]) -> None:
        self._blocks = tuple(blocks)
        self.shape: tuple[int, ...] = (sum(map(len, blocks)), *blocks[0].shape[1:])
        self.dtype = blocks[0].dtype
        self.nbytes = sum(block.nbytes for block in blocks)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def tokens(self) -> int:
        """Return the number of tokens."""
        return self.shape[2]

    def part(self, layers: slice, tokens: slice) -> "LayerArrays":
        """Return some tokens of some layers, as views."""
        blocks = self._blocks[layers] if len(self._blocks) > 1 else (self._blocks[0][layers],)
        return LayerArrays([block[:, :, tokens] for block in blocks])

    def is_zero(self, tokens: slice) -> bool:
        """Return whether some tokens are zero in every layer and head."""
        return not any(block[:, :, tokens].any() for block in self._blocks)

    def pieces(self) -> Iterator[Array]:
        """Yield the elements in order, as few arrays in C order. Only arrays that are not in C order are copied."""
        for block in self._blocks:
            yield from _contiguous_pieces(block)


def _contiguous_pieces(array: Array) -> Iterator[Array]:
    if array.ndim <= 2 or array.flags.c_contiguous:
        yield np.ascontiguousarray(array)
    else:
        for each in array:
            yield from _contiguous_pieces(each)


def byte_view(array: Array) -> memoryview:
    """Return the bytes of a C-order array without a copy."""
    return array.reshape(-1).view(np.uint8).data


def from_wire(tensor: object, name: str, *allowed: str) -> Array:
    """Return a read-only array over the bytes of a tensor in a response. `numpy.array(x)` makes a writable copy.

    Args:
        tensor: a map with `dtype`, `shape` and `data`.
        name: name of the field in the response, for the error message.
        allowed: names of allowed dtypes.

    Raises:
        ProtocolError: it is not a tensor, its dtype is not allowed, or its data does not fit its shape.
    """
    if not isinstance(tensor, Mapping):
        raise ProtocolError(f"invalid response: {name} is {type(tensor).__name__}, expected a tensor")
    dtype, shape, data = (tensor.get(key) for key in ("dtype", "shape", "data"))
    if dtype not in allowed:
        raise ProtocolError(f"invalid response: {name} has dtype {dtype!r}, expected {' or '.join(allowed)}")
    if not (isinstance(shape, list) and 1 <= len(shape) <= _MAX_AXES and all(map(_is_axis_size, shape))):
        raise ProtocolError(f"invalid response: {name} has the invalid shape {shape!r}")
    expected = math.prod(shape) * WIRE_DTYPES[dtype].itemsize
    if not isinstance(data, bytes) or len(data) != expected:
        size = f"{len(data)} bytes" if isinstance(data, bytes) else "no bytes"
        raise ProtocolError(f"invalid response: {name} has {size}, expected {expected} for {dtype} {shape}")
    return np.frombuffer(data, WIRE_DTYPES[dtype]).reshape(shape)


def _is_axis_size(size: object) -> bool:
    return type(size) is int and 0 <= size < _AXIS_LIMIT
