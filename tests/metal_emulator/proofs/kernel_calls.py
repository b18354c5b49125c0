"""Every call that `hadakv_kernels.gpu.mlx_kernels` makes of its kernels. The proofs cover these calls.

The module is a parameter, so that a mutated copy can be tested.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import BITS, DTYPES, HEAD_DIMS, Codec, CodecSpec
from hadakv_kernels.codec import CHOICES
from metal_emulator.executor import Dispatch, Executor
from support.covering import covering

Array = NDArray[Any]
NAMES = tuple(DTYPES)


@dataclass(frozen=True)
class Encoding:
    """A call of `mlx_kernels.encode`; the second stream has its own codec."""

    dtype: str
    k: CodecSpec
    v: CodecSpec | None = None
    diagnose: bool = False

    @property
    def head_dim(self) -> int:
        """Elements of a vector."""
        return self.k.head_dim

    def __str__(self) -> str:
        codecs = " and ".join(map(_words, filter(None, (self.k, self.v))))
        return f"encode{' and diagnose' if self.diagnose else ''} {self.dtype} {codecs}"

    def run(self, mlx_kernels: Any, x: Array, y: Array | None = None, platform: str = "metal") -> list[mx.array]:
        """Encode x, and y as the second stream: `[rows, head_dim]`."""
        second = () if self.v is None or y is None else (on_device(y), self.v)
        outputs: list[mx.array] = mlx_kernels.encode(platform, on_device(x), self.k, *second, diagnose=self.diagnose)
        return outputs

    def plan(self, mlx_kernels: Any, rows: int) -> None:
        """Call the kernel for zeros."""
        x = np.zeros((rows, self.k.head_dim), DTYPES[self.dtype])
        self.run(mlx_kernels, x, x)


@dataclass(frozen=True)
class Decoding:
    """A call of `mlx_kernels.decode`."""

    dtype: str
    spec: CodecSpec
    inverse: bool = True

    @property
    def head_dim(self) -> int:
        """Elements of a vector."""
        return self.spec.head_dim

    def __str__(self) -> str:
        return f"decode {_words(self.spec)} to {'' if self.inverse else 'rotated '}{self.dtype}"

    def run(self, mlx_kernels: Any, packed: Array, norms: Array, platform: str = "metal") -> mx.array:
        """Decode uint8 `[rows, row_bytes]` and float32 `[rows, norms]`."""
        values: mx.array = mlx_kernels.decode(
            platform, on_device(packed), on_device(norms), self.spec, self.dtype, inverse=self.inverse
        )
        return values

    def plan(self, mlx_kernels: Any, rows: int) -> None:
        """Call the kernel for zeros."""
        self.run(
            mlx_kernels, np.zeros((rows, self.spec.row_bytes), np.uint8), np.zeros((rows, self.spec.norms), np.float32)
        )


Call = Encoding | Decoding


def _codecs() -> tuple[Codec, ...]:
    """Return every codec with a different kernel. Codebooks alternate, because they are only numbers to a kernel."""
    options = product(BITS, CHOICES["rotation"], CHOICES["layout"], CHOICES["norm"])
    # With 8 bits, both layouts are the same.
    distinct = [some for some in options if some[0] != 8 or some[2] == "dense"]
    return (
        *(
            Codec(bits, rotation, layout, CHOICES["codebook"][turn % 2], norm)
            for turn, (bits, rotation, layout, norm) in enumerate(distinct)
        ),
        Codec(kind="float16"),
    )


CODECS = _codecs()
# A decoder depends on the packing only. Everything else is numbers to it.
STORED = tuple(codec for codec in CODECS if codec.rotation == "hadamard" and codec.norm == "exact")[:-1]


def single_encodings(head_dims: Sequence[int] = HEAD_DIMS, dtypes: Sequence[str] = NAMES) -> list[Encoding]:
    """Return the encodings of one stream: every codec."""
    return [Encoding(dtype, codec.at(d)) for d, codec, dtype in product(head_dims, CODECS, dtypes)]


def diagnosing(head_dims: Sequence[int] = HEAD_DIMS, dtypes: Sequence[str] = NAMES) -> list[Encoding]:
    """Return the encodings with diagnostic output: every codec that quantizes."""
    return [Encoding(dtype, codec.at(d), None, True) for d, codec, dtype in product(head_dims, CODECS[:-1], dtypes)]


def every_pair() -> list[Encoding]:
    """Return the encodings of two streams: every pair of codecs, with alternating head_dims and dtypes."""
    pairs = product(enumerate(CODECS), enumerate(CODECS))
    return [
        Encoding(NAMES[(i + j) % 3], k.at(HEAD_DIMS[(i // 3 + j) % 4]), v.at(HEAD_DIMS[(i // 3 + j) % 4]))
        for (i, k), (j, v) in pairs
    ]


def some_pairs(head_dim: int) -> list[Encoding]:
    """Return some encodings of two streams: every codec once, and the hybrids of float16 K and unrotated V."""
    half = Codec(kind="float16")
    # Neighbours in CODECS are similar, so combine codecs that are far apart.
    apart = [CODECS[7 * turn % len(CODECS)] for turn in range(len(CODECS) + 1)]
    pairs = list(zip(apart[::2], apart[1::2], strict=True))
    if HEAD_DIMS.index(head_dim) % 2:
        pairs = [(v, k) for k, v in pairs]
    pairs += [(half, codec) for codec in CODECS if (codec.rotation, codec.norm) == ("none", "exact")]
    return [Encoding(NAMES[turn % 3], k.at(head_dim), v.at(head_dim)) for turn, (k, v) in enumerate(pairs)]


def decodings(head_dims: Sequence[int] = HEAD_DIMS, dtypes: Sequence[str] = NAMES) -> list[Decoding]:
    """Return the decodings: every packing, with and without inverse rotation."""
    choices = product(head_dims, STORED, dtypes, (True, False))
    return [Decoding(dtype, codec.at(d), inverse) for d, codec, dtype, inverse in choices]


def representative_encodings(*, diagnose: bool = False) -> list[Encoding]:
    """Return a part of `single_encodings`, or of `diagnosing`.

    Every triple of codec options, head_dim and dtype occurs in it; with `diagnose`, every pair.
    """
    options = (CHOICES["rotation"], CHOICES["layout"], CHOICES["norm"])
    by_options = {(codec.bits, codec.rotation, codec.layout, codec.norm): codec for codec in CODECS[:-1]}
    rows = covering((HEAD_DIMS, NAMES, BITS, *options), strength=2 if diagnose else 3)
    chosen = [] if diagnose else [Encoding(dtype, CODECS[-1].at(d)) for d, dtype in product(HEAD_DIMS, NAMES)]
    for head_dim, dtype, bits, rotation, layout, norm in rows:
        codec = by_options[bits, rotation, "dense" if bits == 8 else layout, norm]
        chosen.append(Encoding(str(dtype), codec.at(head_dim), None, diagnose))
    return list(dict.fromkeys(chosen))


def representative_decodings() -> list[Decoding]:
    """Return a part of `decodings`, in which every pair of packing, head_dim, dtype and direction occurs."""
    rows = covering((HEAD_DIMS, STORED, NAMES, (True, False)))
    return [Decoding(str(dtype), codec.at(head_dim), bool(inverse)) for head_dim, codec, dtype, inverse in rows]


def representative_pairs() -> list[Encoding]:
    """Return a part of `some_pairs` of all head_dims, in which every pair of codecs occurs at one head_dim."""
    return [call for turn, head_dim in enumerate(HEAD_DIMS) for call in some_pairs(head_dim)[turn :: len(HEAD_DIMS)]]


def one_of_each(head_dim: int) -> list[Call]:
    """Return one call of every kind of kernel."""
    three, eight = Codec(3, norm="unbiased").at(head_dim), Codec(8, codebook="lloyd-max").at(head_dim)
    half, bare = Codec(kind="float16").at(head_dim), Codec(6, rotation="none", layout="byte").at(head_dim)
    return [
        Encoding("float32", three),
        Encoding("bfloat16", half),
        Encoding("float16", half, bare),
        Encoding("float32", eight, three),
        Encoding("bfloat16", three, diagnose=True),
        Decoding("float16", eight),
        Decoding("float32", three, inverse=False),
    ]


@cache
def every_kind() -> dict[str, Sequence[Call]]:
    """Return all calls, by kind."""
    return {
        "one stream": single_encodings(),
        "two streams": every_pair(),
        "diagnosing": diagnosing(),
        "decoding": decodings(),
    }


def by_kind() -> list[Any]:
    """Parametrize a test with the calls of each kind.

    Of the pairs of codecs, every 7th runs always, so that every codec occurs as K and as V. The others are exhaustive.
    """
    kinds = every_kind()
    pairs = kinds["two streams"]
    others = [pair for turn, pair in enumerate(pairs) if turn % 7]
    parameters = [pytest.param(some, id=kind) for kind, some in kinds.items() if some is not pairs]
    parameters.append(pytest.param(pairs[::7], id="two streams"))
    return [*parameters, pytest.param(others, id="two streams-others", marks=pytest.mark.exhaustive)]


def planned(executor: Executor, mlx_kernels: Any, calls: Iterable[Call], rows: int = 9) -> list[Dispatch]:
    """Return the dispatches of the calls, without running them."""
    with executor.plan() as dispatches:
        for call in calls:
            call.plan(mlx_kernels, rows)
    return dispatches


def on_device(array: Array) -> mx.array:
    """Return an MLX array with the values."""
    if array.dtype == DTYPES["bfloat16"]:
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array)


def on_host(array: mx.array) -> Array:
    """Return a NumPy array with the values."""
    if array.dtype == mx.bfloat16:
        return np.array(array.view(mx.uint16)).view(DTYPES["bfloat16"])
    return np.array(array)


def _words(spec: CodecSpec) -> str:
    codec = spec.codec
    if codec.kind == "float16":
        return f"{spec.head_dim} as float16"
    return f"{spec.head_dim} {codec.bits} bits {codec.layout} {codec.rotation} {codec.codebook} {codec.norm}"
