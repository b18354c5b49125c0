"""Request bodies in msgpack. Tensors stay views of the caller's arrays until they are sent."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgpack  # type: ignore[import-untyped]  # it ships no types
import numpy as np

from hadakv_client.http.tensors import DTYPE_NAMES, Array, byte_view

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
        message: map of msgpack values and C-order arrays. The arrays become tensors.

    Raises:
        ValueError: an array has 4 GiB or more, the limit of msgpack.
    """

    def __init__(self, message: Mapping[str, Any]) -> None:
        self._parts = list(_parts(message))
        self.nbytes = sum(map(len, self._parts))
        if self.nbytes <= MAX_JOINED_NBYTES:
            self._parts = [b"".join(self._parts)]

    @property
    def as_bytes(self) -> bytes | None:
        """Return the body as one object if it is small, else None."""
        part = self._parts[0]
        return part if isinstance(part, bytes) and len(self._parts) == 1 else None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body in chunks of at most 1 MiB."""
        for part in self._parts:
            for start in range(0, len(part), CHUNK_NBYTES):
                # httpx is typed for bytes, but a memoryview works too.
                yield cast(bytes, part[start : start + CHUNK_NBYTES])


def _parts(message: Mapping[str, Any]) -> Iterator[Chunk]:
    packer = msgpack.Packer()
    yield packer.pack_map_header(len(message))
    for key, value in message.items():
        yield packer.pack(key)
        if isinstance(value, np.ndarray):
            yield from _tensor(packer, value)
        else:
            yield packer.pack(value)


def _tensor(packer: msgpack.Packer, array: Array) -> Iterator[Chunk]:
    if array.nbytes > MAX_TENSOR_NBYTES:
        raise ValueError(
            f"a tensor may have at most {MAX_TENSOR_NBYTES} bytes, not {array.nbytes}; split it into several appends"
        )
    empty = packer.pack({"dtype": DTYPE_NAMES[array.dtype], "shape": array.shape, "data": b""})
    # Replace the two bytes of the empty bin with the header of a bin 32, so that the data can follow without a copy.
    yield empty[:-2] + b"\xc6" + array.nbytes.to_bytes(4, "big")
    yield byte_view(array)
