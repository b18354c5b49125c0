"""Payloads: seeded tensors, msgpack bodies, and the sizes of the responses."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import Codec

SEED = 20240607
BLOCK = 1 << 20
PATH = "/sessions/{session}/kv"


@dataclass(frozen=True)
class Workload:
    """One append of K and V, float16 `[layers, kv_heads, tokens, head_dim]` each, stored at 4 bits.

    Attributes:
        name: name of the workload and of the session.
    """

    name: str
    layers: int
    kv_heads: int
    tokens: int
    head_dim: int

    @cached_property
    def tensors(self) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Return Gaussian K and V. Large arrays repeat a block, because making them would take long."""
        random = np.random.default_rng(SEED)
        shape = (self.layers, self.kv_heads, self.tokens, self.head_dim)
        k, v = (random.standard_normal(BLOCK, np.float32).astype(np.float16) for _ in range(2))
        return np.resize(k, shape), np.resize(v, shape)

    @cached_property
    def body(self) -> bytes:
        """Return the msgpack body of the append."""
        return bytes(msgpack.packb({name: _tensor(x) for name, x in zip("kv", self.tensors, strict=True)}))

    @cached_property
    def raw(self) -> bytes:
        """Return the float16 bytes of K and V, as a key-value store would get them."""
        return b"".join(x.tobytes() for x in self.tensors)

    @property
    def packed_nbytes(self) -> int:
        """Return the bytes that the service stores and returns, without msgpack."""
        return 2 * self.layers * self.kv_heads * self.tokens * Codec().at(self.head_dim).nbytes

    def request(self, session: str) -> bytes:
        """Return the request line and headers of the append."""
        return (
            f"POST {PATH.format(session=session)} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/msgpack\r\nContent-Length: {len(self.body)}\r\n\r\n"
        ).encode()


BULK = Workload("bulk", layers=8, kv_heads=8, tokens=2048, head_dim=128)
STEP = Workload("step", layers=6, kv_heads=2, tokens=1, head_dim=256)


def answer_nbytes(body_nbytes: int) -> int:
    """Return the response of servers without a codec, so that all contenders move the same number of bytes."""
    return (BULK if body_nbytes > 1 << 20 else STEP).packed_nbytes


def _tensor(x: NDArray[np.float16]) -> dict[str, Any]:
    return {"dtype": x.dtype.name, "shape": list(x.shape), "data": x.tobytes()}
