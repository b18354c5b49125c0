"""Streams that are put together from parts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_client.http.tensors import Array
from hadakv_kernels import Encoded

Stream = Encoded | Array


class JoinedStream:
    """Keys or values that arrive in parts, in arrays that are allocated once.

    Args:
        name: name of the stream, for error messages.
        layers: number of layers of all parts together.
        tokens: number of tokens, or of rows of a ring.
        out: arrays to write to; None allocates them when the first part arrives.
    """

    def __init__(self, name: str, layers: int, tokens: int, out: Any = None) -> None:
        self._name = name
        self._axes = (layers, tokens)
        self._out = out
        self._arrays: tuple[Array, ...] | None = None
        self._is_packed = False

    def add(self, part: Stream, layers: slice, tokens: slice | NDArray[np.intp]) -> None:
        """Copy a part to its place.

        Raises:
            TypeError: `out` does not consist of arrays of the form of the part.
            ValueError: an array of `out` is read-only, or has another shape or dtype.
        """
        arrays = _arrays(part)
        if self._arrays is None:
            self._is_packed = isinstance(part, Encoded)
            self._arrays = (
                tuple(np.zeros(self._shape(each), each.dtype) for each in arrays)
                if self._out is None
                else self._checked_out(part)
            )
        for whole, array in zip(self._arrays, arrays, strict=True):
            whole[layers, :, tokens] = array

    def _shape(self, part: Array) -> tuple[int, ...]:
        layers, tokens = self._axes
        return (layers, part.shape[1], tokens, *part.shape[3:])

    def _checked_out(self, part: Stream) -> tuple[Array, ...]:
        name = f"out for {self._name}"
        if not isinstance(self._out, Encoded if isinstance(part, Encoded) else np.ndarray):
            raise TypeError(f"{name} must be {type(part).__name__}, not {type(self._out).__name__}")
        for array, each in zip(_arrays(self._out), _arrays(part), strict=True):
            shape = self._shape(each)
            if (array.shape, array.dtype) != (shape, each.dtype):
                raise ValueError(f"{name} must be {each.dtype} {list(shape)}, not {array.dtype} {list(array.shape)}")
            if not array.flags.writeable:
                raise ValueError(f"{name} is read-only")
            # A ring may have rows without a token.
            array[...] = 0
        return _arrays(self._out)

    def result(self) -> Any:
        """Return the stream. Arrays that were allocated here are read-only."""
        assert self._arrays is not None
        if self._out is not None:
            return self._out
        for array in self._arrays:
            array.flags.writeable = False
        return Encoded(*self._arrays) if self._is_packed else self._arrays[0]


def _arrays(stream: Stream) -> tuple[Array, ...]:
    return (stream.packed, stream.norms) if isinstance(stream, Encoded) else (stream,)
