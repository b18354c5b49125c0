"""Request bodies: a msgpack map whose tensors are views of the caller's arrays until they are on the wire."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgpack  # type: ignore[import-untyped]  # it ships no types
import numpy as np

from hadakv_client.http.tensors import NAMES, Array, memory

Piece = bytes | memoryview

# httpx copies a piece before it sends it: small enough that the copy stays in the cache, large enough to be few.
PIECE_NBYTES = 1 << 20
# Bodies up to here are joined: copying them is cheaper than sending them in pieces.
JOINED_NBYTES = 64 * 1024
LARGEST_TENSOR = (1 << 32) - 1


class Body:
    """A body that can be sent any number of times.

    The arrays must not change until it has been sent for the last time.

    Args:
        message: a map of what msgpack has types for, and C-order arrays, which become tensors.

    Raises:
        ValueError: an array has 4 GiB or more, which msgpack cannot say.
    """

    def __init__(self, message: Mapping[str, Any]) -> None:
        self._parts = list(_parts(message))
        self.nbytes = sum(map(len, self._parts))
        if self.nbytes <= JOINED_NBYTES:
            self._parts = [b"".join(self._parts)]

    @property
    def joined(self) -> bytes | None:
        """The whole body, if it is a small one."""
        part = self._parts[0]
        return part if isinstance(part, bytes) and len(self._parts) == 1 else None

    def __iter__(self) -> Iterator[bytes]:
        """The body in pieces of up to 1 MiB."""
        for part in self._parts:
            for start in range(0, len(part), PIECE_NBYTES):
                # httpx asks for bytes by name; a view does all it wants of them.
                yield cast(bytes, part[start : start + PIECE_NBYTES])


def _parts(message: Mapping[str, Any]) -> Iterator[Piece]:
    packer = msgpack.Packer()
    yield packer.pack_map_header(len(message))
    for key, value in message.items():
        yield packer.pack(key)
        if isinstance(value, np.ndarray):
            yield from _tensor(packer, value)
        else:
            yield packer.pack(value)


def _tensor(packer: msgpack.Packer, array: Array) -> Iterator[Piece]:
    if array.nbytes > LARGEST_TENSOR:
        raise ValueError(f"a tensor may have at most {LARGEST_TENSOR} bytes, not {array.nbytes}; append in parts")
    empty = packer.pack({"dtype": NAMES[array.dtype], "shape": array.shape, "data": b""})
    # Instead of the empty bin's two bytes, the head of one with the array's.
    yield empty[:-2] + b"\xc6" + array.nbytes.to_bytes(4, "big")
    yield memory(array)
