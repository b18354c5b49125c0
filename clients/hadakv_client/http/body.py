"""Request bodies in msgpack. Tensors stay views of the caller's arrays until they are sent."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgpack  # type: ignore[import-untyped]  # it ships no types
import numpy as np

from hadakv_client.http.tensors import DTYPE_NAMES, Array, LayerArrays, byte_view

Chunk = bytes | memoryview

# httpx copies each chunk before it sends it. This size is small enough for the copy to stay in the CPU cache, and large
# enough for few chunks.
CHUNK_NBYTES = 1 << 20
# Bodies up to this size are joined. A copy costs less than several small sends.
MAX_JOINED_NBYTES = 64 * 1024
# Limit of a msgpack bin 32.
MAX_TENSOR_NBYTES = (1 << 32) - 1


class Body:
    """Request body that can be sent several times.

    The arrays must not change until the last send has finished.

    Args:
        message: map of msgpack values and arrays. The arrays become tensors.

    Raises:
        TypeError: msgpack has no such type.
        ValueError: an array has 4 GiB or more, or an integer more than 64 bits: the limits of msgpack.
    """

    def __init__(self, message: Mapping[str, Any]) -> None:
        self._parts = list(_parts(message))
        self.nbytes = sum(part.nbytes if isinstance(part, LayerArrays) else len(part) for part in self._parts)
        if self.nbytes <= MAX_JOINED_NBYTES:
            self._parts = [b"".join(self._views())]

    @property
    def as_bytes(self) -> bytes | None:
        """Return the body as one object if it is small, else None."""
        part = self._parts[0]
        return part if isinstance(part, bytes) and len(self._parts) == 1 else None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body in chunks of at most 1 MiB. Small pieces are joined."""
        small, nbytes = list[Chunk](), 0
        for view in self._views():
            if small and nbytes + len(view) > MAX_JOINED_NBYTES:
                yield b"".join(small)
                small, nbytes = [], 0
            if len(view) <= MAX_JOINED_NBYTES:
                small.append(view)
                nbytes += len(view)
                continue
            for start in range(0, len(view), CHUNK_NBYTES):
                # httpx is typed for bytes, but a memoryview works too.
                yield cast(bytes, view[start : start + CHUNK_NBYTES])
        if small:
            yield b"".join(small)

    def _views(self) -> Iterator[Chunk]:
        for part in self._parts:
            if isinstance(part, LayerArrays):
                yield from map(byte_view, part.pieces())
            else:
                yield part


def _parts(message: Mapping[str, Any]) -> Iterator[Chunk | LayerArrays]:
    packer = msgpack.Packer()
    yield packer.pack_map_header(len(message))
    for key, value in message.items():
        yield packer.pack(key)
        if isinstance(value, np.ndarray | LayerArrays):
            yield from _tensor(packer, value)
        else:
            yield _packed(packer, key, value)


def _packed(packer: msgpack.Packer, key: str, value: object) -> bytes:
    try:
        return cast(bytes, packer.pack(value))
    except OverflowError:
        raise ValueError(f"{key} is too large: {value!r}") from None
    except TypeError as error:
        raise TypeError(f"{key}: {error}") from None


def _tensor(packer: msgpack.Packer, array: Array | LayerArrays) -> Iterator[Chunk | LayerArrays]:
    if array.nbytes > MAX_TENSOR_NBYTES:
        raise ValueError(f"a tensor may have at most {MAX_TENSOR_NBYTES} bytes, not {array.nbytes}")
    empty = packer.pack({"dtype": DTYPE_NAMES[array.dtype], "shape": array.shape, "data": b""})
    # Replace the two bytes of the empty bin with the header of a bin 32, so that the data can follow without a copy.
    yield empty[:-2] + b"\xc6" + array.nbytes.to_bytes(4, "big")
    yield array if isinstance(array, LayerArrays) else byte_view(array)
