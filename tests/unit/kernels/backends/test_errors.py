"""Errors that every backend raises for invalid input."""

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import (
    HEAD_DIMS,
    Backend,
    BackendUnavailable,
    Codec,
    CodecSpec,
    Encoded,
    Stream,
    UnsupportedCodec,
    UnsupportedDtype,
    UnsupportedShape,
    open_backend,
)
from hadakv_kernels.cpu import CpuBackend
from support.backends import on_device

WITH_NUMPY = True

CODECS = pytest.mark.parametrize("codec", [Codec(), Codec(kind="float16")], ids=["quantized", "float16"])


@CODECS
@pytest.mark.parametrize("dtype", ["float64", "int8", "uint8", "int32", "complex64", "bool", ">f4", ">f2", "S4"])
def test_encode_rejects_unsupported_dtypes(dtype: str, codec: Codec, backend: Backend) -> None:
    x = np.zeros((2, 64), dtype)

    with pytest.raises(UnsupportedDtype, match="dtype must be one of float32, float16, bfloat16, not "):
        backend.encode([Stream(x, codec.at(64))])


@CODECS
@pytest.mark.parametrize(
    "x", [np.zeros((2, 63), np.float32), np.zeros((64, 2), np.float32), np.zeros(0, np.float32), np.float32(1)]
)
def test_encode_rejects_a_wrong_last_axis(x: NDArray[Any], codec: Codec, backend: Backend) -> None:
    with pytest.raises(UnsupportedShape, match="the last axis must have 64 elements, but the shape is"):
        backend.encode([Stream(np.asarray(x), codec.at(64))])


def test_diagnose_rejects_unsupported_dtype_and_shape(backend: Backend) -> None:
    with pytest.raises(UnsupportedDtype):
        backend.diagnose(np.zeros((2, 64)), Codec().at(64))
    with pytest.raises(UnsupportedShape):
        backend.diagnose(np.zeros((2, 64), np.float32), Codec().at(128))


def test_diagnose_rejects_kind_float16(backend: Backend) -> None:
    for count in (0, 2):
        with pytest.raises(UnsupportedCodec, match=r'codec\.kind: must be "quantized" to be diagnosed, not "float16"'):
            backend.diagnose(np.zeros((count, 64), np.float32), Codec(kind="float16").at(64))


def decoded(backend: Backend, spec: CodecSpec, packed: NDArray[Any], norms: NDArray[Any]) -> Any:
    return backend.decode(Encoded(packed, norms), spec, "float32")


@CODECS
@pytest.mark.parametrize("head_dim", [64, 512])
@pytest.mark.parametrize("lead", [(), (0,), (6,), (2, 3)], ids=lambda lead: "x".join(map(str, lead)) or "one")
def test_decode_rejects_a_wrong_row_size(lead: tuple[int, ...], head_dim: int, codec: Codec, backend: Backend) -> None:
    spec = codec.at(head_dim)
    norms = np.ones((*lead, spec.norms), np.float32)

    for row_bytes in (0, 1, spec.row_bytes - 1, spec.row_bytes + 1, 2 * spec.row_bytes):
        shape = (*lead, row_bytes)
        message = f"the last axis of packed must have {spec.row_bytes} bytes, but the shape is {shape}"
        with pytest.raises(UnsupportedShape, match=re.escape(message)):
            decoded(backend, spec, np.zeros(shape, np.uint8), norms)


@CODECS
@pytest.mark.parametrize("head_dim", [64, 512])
def test_decode_rejects_norms_with_other_leading_axes(head_dim: int, codec: Codec, backend: Backend) -> None:
    spec = codec.at(head_dim)
    packed = np.zeros((2, 3, spec.row_bytes), np.uint8)

    for lead in ((5,), (7,), (1,), (0,), (), (3, 2), (6, 1), (2, 2), (1, 2, 3)):
        norms = np.ones((*lead, spec.norms), np.float32)
        message = f"must have the shape {(2, 3, spec.norms)} to match packed of shape {packed.shape}, not {norms.shape}"
        with pytest.raises(UnsupportedShape, match=re.escape(message)):
            decoded(backend, spec, packed, norms)


@CODECS
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_decode_rejects_a_wrong_number_of_norms(head_dim: int, codec: Codec, backend: Backend) -> None:
    spec = codec.at(head_dim)
    packed = np.zeros((6, spec.row_bytes), np.uint8)

    for number in {0, 1, 2, 3} - {spec.norms}:
        with pytest.raises(UnsupportedShape, match=rf"norms must have the shape \(6, {spec.norms}\)"):
            decoded(backend, spec, packed, np.ones((6, number), np.float32))


@pytest.mark.parametrize("norms", [np.float32(1), np.ones((), np.float32), np.ones(6, np.float32)], ids=repr)
def test_decode_rejects_norms_without_their_own_axis(norms: NDArray[Any], backend: Backend) -> None:
    with pytest.raises(UnsupportedShape, match=r"must have the shape \(6, 1\) to match packed of shape \(6, 32\), not"):
        decoded(backend, Codec().at(64), np.zeros((6, 32), np.uint8), np.asarray(norms))


def test_decode_rejects_packed_without_axes(backend: Backend) -> None:
    with pytest.raises(UnsupportedShape, match=r"the last axis of packed must have 32 bytes, but the shape is \(\)"):
        decoded(backend, Codec().at(64), np.zeros((), np.uint8), np.ones(1, np.float32))


@CODECS
@pytest.mark.parametrize("dtype", ["int8", "bool", "uint16", "int32", "float32", "S1"])
@pytest.mark.parametrize("count", [0, 6])
def test_decode_rejects_packed_of_another_dtype(count: int, dtype: str, codec: Codec, backend: Backend) -> None:
    spec = codec.at(64)
    packed = np.zeros((count, spec.row_bytes), dtype)

    with pytest.raises(UnsupportedDtype, match=re.escape(f"packed must be uint8, not {packed.dtype}")):
        decoded(backend, spec, packed, np.ones((count, spec.norms), np.float32))


@CODECS
@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint8", "complex64", ">f4"])
@pytest.mark.parametrize("count", [0, 6])
def test_decode_rejects_norms_of_another_dtype(count: int, dtype: str, codec: Codec, backend: Backend) -> None:
    spec = codec.at(64)
    norms = np.ones((count, spec.norms), dtype)

    with pytest.raises(UnsupportedDtype, match=re.escape(f"norms must be float32, not {norms.dtype}")):
        decoded(backend, spec, np.zeros((count, spec.row_bytes), np.uint8), norms)


@CODECS
@pytest.mark.parametrize("dtype", ["float64", "int8", "Float32", "half", "", None])
@pytest.mark.parametrize("count", [0, 6])
def test_decode_rejects_an_unsupported_result_dtype(count: int, dtype: Any, codec: Codec, backend: Backend) -> None:
    spec = codec.at(64)
    stored = Encoded(np.zeros((count, spec.row_bytes), np.uint8), np.ones((count, spec.norms), np.float32))

    with pytest.raises(UnsupportedDtype, match=f"dtype must be one of float32, float16, bfloat16, not {dtype}"):
        backend.decode(stored, spec, dtype)


@pytest.mark.parametrize("head_dim", [64, 512])
def test_decode_rejects_invalid_device_arrays(head_dim: int, backend: Backend) -> None:
    spec = Codec().at(head_dim)
    packed, norms = np.zeros((6, spec.row_bytes), np.uint8), np.ones((6, spec.norms), np.float32)

    with pytest.raises(UnsupportedShape, match=r"norms must have the shape \(6, "):
        backend.decode(on_device(backend, Encoded(packed, norms[:5])), spec, "float32")
    with pytest.raises(UnsupportedDtype, match=r"norms must be float32, not .*float16"):
        backend.decode(on_device(backend, Encoded(packed, norms.astype(np.float16))), spec, "float32")
    with pytest.raises(UnsupportedDtype, match=r"packed must be uint8, not .*int32"):
        backend.decode(on_device(backend, Encoded(packed.astype(np.int32), norms)), spec, "float32")


@pytest.mark.parametrize("threads", [0, -1, -8])
@pytest.mark.parametrize("isa", [None, "numpy"])
def test_cpu_backend_rejects_less_than_one_thread(isa: str | None, threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads must be at least 1, or None for every processor, not {threads}"):
        CpuBackend(threads, isa)


def test_open_backend_rejects_an_unknown_name() -> None:
    with pytest.raises(BackendUnavailable, match="unknown backend 'abacus': choose one of metal, cuda, cpu"):
        open_backend("abacus")
