"""Codec for KV vectors: rotates, normalises and quantizes them, with the same bytes on every backend."""

from hadakv_kernels.backend import Backend, Stream
from hadakv_kernels.codec import BITS, HEAD_DIMS, Codec, CodecSpec
from hadakv_kernels.errors import (
    BackendUnavailable,
    CodecError,
    UnsupportedCodec,
    UnsupportedDtype,
    UnsupportedShape,
)
from hadakv_kernels.open import open_backend
from hadakv_kernels.reference import DTYPES, Diagnostics, Encoded

__all__ = [
    "BITS",
    "DTYPES",
    "HEAD_DIMS",
    "Backend",
    "BackendUnavailable",
    "Codec",
    "CodecError",
    "CodecSpec",
    "Diagnostics",
    "Encoded",
    "Stream",
    "UnsupportedCodec",
    "UnsupportedDtype",
    "UnsupportedShape",
    "open_backend",
]
