"""Tensors between the caller's arrays and the wire, without copying what need not be copied."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_client.errors import ProtocolError
from hadakv_kernels import DTYPES

Array = NDArray[Any]
ON_THE_WIRE = {**DTYPES, "uint8": np.dtype(np.uint8)}
NAMES = {dtype: name for name, dtype in ON_THE_WIRE.items()}


def to_numpy(x: Any, name: str, *allowed: str) -> Array:
    """The argument as a C-order array that can be sent; the caller's own memory where that is C order already.

    Args:
        x: a NumPy array, or an `mlx.core.array`.
        name: the argument's name, for the message.
        allowed: names of dtypes; float32, float16 and bfloat16 if none are given.

    Raises:
        TypeError: x is neither, or has another dtype.
        ValueError: x is big-endian or has no axes.
    """
    array = _from_mlx(x) if type(x).__module__ == "mlx.core" else x
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array or an mlx.core.array, not {type(x).__name__}")
    if not array.dtype.isnative:
        raise ValueError(f"{name} must be in this machine's byte order: x.astype(x.dtype.newbyteorder('='))")
    names = allowed or tuple(DTYPES)
    if NAMES.get(array.dtype) not in names:
        raise TypeError(f"{name} must be {' or '.join(names)}, not {array.dtype}")
    if array.ndim == 0:
        raise ValueError(f"{name} has no axes")
    return np.ascontiguousarray(array)


def _from_mlx(x: Any) -> Array:
    import mlx.core as mx

    if x.dtype == mx.bfloat16:
        # NumPy has no bfloat16 of its own, so the bits travel as uint16.
        return np.asarray(x.view(mx.uint16)).view(DTYPES["bfloat16"])
    return np.asarray(x)


def memory(array: Array) -> memoryview:
    """The bytes of a C-order array, as a view."""
    return array.reshape(-1).view(np.uint8).data


def from_wire(tensor: object, name: str, *allowed: str) -> Array:
    """An array over the bytes of a tensor in an answer. It is read-only; `numpy.array(x)` makes a copy to write to.

    Args:
        tensor: `{"dtype", "shape", "data"}`.
        name: what it is in the answer, for the message.
        allowed: names of dtypes.

    Raises:
        ProtocolError: it is no tensor, of another dtype, or its data does not fill its shape.
    """
    if not isinstance(tensor, Mapping):
        raise ProtocolError(f"the answer's {name} is no tensor")
    dtype, shape, data = (tensor.get(key) for key in ("dtype", "shape", "data"))
    if dtype not in allowed:
        raise ProtocolError(f"the answer's {name} is {dtype!r} instead of {' or '.join(allowed)}")
    # NumPy has at most 64 axes; no axis is beyond what memory can hold.
    if not (isinstance(shape, list) and 1 <= len(shape) <= 64 and all(map(_is_axis, shape))):
        raise ProtocolError(f"the answer's {name} has the shape {shape!r}")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * ON_THE_WIRE[dtype].itemsize:
        size = len(data) if isinstance(data, bytes) else "no"
        raise ProtocolError(f"the answer's {name} has {size} bytes for {dtype} {shape}")
    return np.frombuffer(data, ON_THE_WIRE[dtype]).reshape(shape)


def _is_axis(size: object) -> bool:
    return type(size) is int and 0 <= size < 1 << 48
