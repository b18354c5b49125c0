"""Request bodies as typed structs."""

import math
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import DTYPES, Codec, UnsupportedCodec
from hadakv_service.errors import InvalidRequest
from hadakv_service.sessions.limits import MAX_TTL_SECONDS

Dimension = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
Window = Annotated[int, msgspec.Meta(ge=1, le=1 << 48)]
TtlSeconds = Annotated[float, msgspec.Meta(gt=0, le=MAX_TTL_SECONDS)]


_DTYPES = {**DTYPES, "uint8": np.dtype(np.uint8)}


class Tensor(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor: dtype, shape and C-order little-endian bytes. `data` is a view of the request body."""

    dtype: Literal["float32", "float16", "bfloat16", "uint8"]
    shape: Annotated[list[Dimension], msgspec.Meta(min_length=1, max_length=8)]
    data: memoryview

    def array(self, field: str, *allowed: str) -> NDArray[Any]:
        """Return the tensor as a NumPy view of the body.

        Args:
            field: name of the field, for errors.
            allowed: the dtypes to accept.

        Raises:
            InvalidRequest: the dtype is not allowed, the data has another length than the shape needs, or the shape is
                too large for NumPy.
        """
        if self.dtype not in allowed:
            raise InvalidRequest([(f"{field}.dtype", f"must be {' or '.join(allowed)}, not {self.dtype}")])
        dtype = _DTYPES[self.dtype]
        size = math.prod(self.shape)
        if (nbytes := size * dtype.itemsize) != len(self.data):
            reason = f"has {len(self.data)} bytes, but the shape {self.shape} of {self.dtype} needs {nbytes}"
            raise InvalidRequest([(f"{field}.data", reason)])
        if size:
            return np.frombuffer(self.data, dtype).reshape(self.shape)
        # An axis of length 0 makes the size 0 for any length of the others. NumPy overflows on the product of those.
        if math.prod(axis or 1 for axis in self.shape) >= 1 << 40:
            raise InvalidRequest([(f"{field}.shape", "is too large")])
        return np.empty(self.shape, dtype)


class CodecOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The options of one codec. Missing ones have their defaults."""

    bits: int | None = None
    rotation: str | None = None
    layout: str | None = None
    codebook: str | None = None
    norm: str | None = None
    kind: str | None = None
    d512_scale: float | None = None

    def codec(self, field: str) -> Codec:
        """Return the codec with these options."""
        options = {name: getattr(self, name) for name in self.__struct_fields__[:7]}
        try:
            return Codec.from_mapping({name: value for name, value in options.items() if value is not None})
        except UnsupportedCodec as error:
            raise InvalidRequest([(f"{field}.{error.field}", error.reason)]) from None


class CodecPair(CodecOptions, forbid_unknown_fields=True, omit_defaults=True):
    """One codec for both streams, or one for each under `k` and `v`."""

    k: CodecOptions | None = None
    v: CodecOptions | None = None

    def codecs(self) -> tuple[Codec, Codec]:
        """Return the codecs of k and of v."""
        if self.k is None and self.v is None:
            both = self.codec("codec")
            return both, both
        if any(getattr(self, name) is not None for name in CodecOptions.__struct_fields__):
            raise InvalidRequest(
                [("codec", "has options in addition to k or v; set one codec for both, or one for each")]
            )
        k, v = self.k or CodecOptions(), self.v or CodecOptions()
        return k.codec("codec.k"), v.codec("codec.v")


class AppendBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /sessions/{id}/kv."""

    k: Tensor
    v: Tensor
    layer: Dimension = 0
    position: Dimension | None = None
    codec: CodecPair | None = None


class SessionBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of PUT /sessions/{id}."""

    codec: CodecPair | None = None
    layers: Count | None = None
    kv_heads: Count | None = None
    head_dim: int | None = None
    window: Window | None = None
    ttl_seconds: TtlSeconds | None = None
    durability: Literal["memory", "spill", "ack"] | None = None


class TruncateBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /sessions/{id}/truncate."""

    length: Dimension


class ForkBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /sessions/{id}/fork."""

    id: str
    length: Dimension | None = None


class EncodeBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /encode."""

    x: Tensor
    codec: CodecOptions = msgspec.field(default_factory=CodecOptions)
    diagnostics: bool = False


class DecodeBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /decode. A codec of kind float16 has `values` instead of `packed` and `norms`."""

    head_dim: int
    packed: Tensor | None = None
    norms: Tensor | None = None
    values: Tensor | None = None
    codec: CodecOptions = msgspec.field(default_factory=CodecOptions)
    form: Literal["float32", "float16", "bfloat16", "rotated"] = "float32"
