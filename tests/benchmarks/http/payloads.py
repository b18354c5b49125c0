"""What is sent and what comes back: seeded tensors, msgpack bodies, and the sizes of the answers."""

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
        name: also the session's name.
    """

    name: str
    layers: int
    kv_heads: int
    tokens: int
    head_dim: int

    @cached_property
    def tensors(self) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Gaussian K and V; large ones repeat a block, which changes nothing but the time it takes to make them."""
        random = np.random.default_rng(SEED)
        shape = (self.layers, self.kv_heads, self.tokens, self.head_dim)
        k, v = (random.standard_normal(BLOCK, np.float32).astype(np.float16) for _ in range(2))
        return np.resize(k, shape), np.resize(v, shape)

    @cached_property
    def body(self) -> bytes:
        """The msgpack body of the append."""
        return bytes(msgpack.packb({name: _tensor(x) for name, x in zip("kv", self.tensors, strict=True)}))

    @cached_property
    def raw(self) -> bytes:
        """Only the float16 bytes of K and V, as one would put them into a key-value store."""
        return b"".join(x.tobytes() for x in self.tensors)

    @property
    def packed_nbytes(self) -> int:
        """Bytes of what the service stores and answers, without the msgpack around it."""
        return 2 * self.layers * self.kv_heads * self.tokens * Codec().at(self.head_dim).nbytes

    def request(self, session: str) -> bytes:
        """The head of the append's HTTP request."""
        return (
            f"POST {PATH.format(session=session)} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/msgpack\r\nContent-Length: {len(self.body)}\r\n\r\n"
        ).encode()


BULK = Workload("bulk", layers=8, kv_heads=8, tokens=2048, head_dim=128)
STEP = Workload("step", layers=6, kv_heads=2, tokens=1, head_dim=256)


def answer_nbytes(body_nbytes: int) -> int:
    """What a server without a codec answers to a body, so that every contender moves the same bytes both ways."""
    return (BULK if body_nbytes > 1 << 20 else STEP).packed_nbytes


def _tensor(x: NDArray[np.float16]) -> dict[str, Any]:
    return {"dtype": x.dtype.name, "shape": list(x.shape), "data": x.tobytes()}
