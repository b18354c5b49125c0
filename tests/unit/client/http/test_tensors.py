"""Conversion between arrays and tensors, and msgpack bodies."""

import subprocess
import sys
import tracemalloc
from typing import Any

import ml_dtypes
import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hadakv_client import ProtocolError
from hadakv_client.http.body import Body
from hadakv_client.http.tensors import from_wire, to_numpy

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16, np.dtype(np.uint8)]
shapes = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)
integers = st.integers(-(2**63), 2**63 - 1)
scalars = st.none() | st.booleans() | integers | st.floats(allow_nan=False) | st.text()


def random_bits(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    nbytes = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(nbytes), dtype).reshape(shape)


tensors = st.builds(random_bits, st.sampled_from(DTYPES), shapes, st.integers(0, 2**32))


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(st.dictionaries(st.text(), tensors | scalars | st.lists(scalars)))
def test_body_is_read_by_another_msgpack_library(message: dict[str, Any]) -> None:
    received = msgspec.msgpack.decode(b"".join(Body(message)))

    assert received.keys() == message.keys()
    for key, sent in message.items():
        got = received[key]
        if isinstance(sent, np.ndarray):
            assert same(from_wire(got, key, got["dtype"]), sent)
        else:
            assert got == sent


@pytest.mark.parametrize("nbytes", [0, 1, 65_000, 70_000, 1 << 20, (5 << 20) + 3])
def test_body_has_chunks_of_at_most_1_mib(nbytes: int) -> None:
    body = Body({"x": np.zeros(nbytes, np.uint8)})

    pieces = list(body)

    assert sum(map(len, pieces)) == body.nbytes
    assert max(map(len, pieces)) <= 1 << 20


def test_body_can_be_sent_twice() -> None:
    body = Body({"x": np.arange(1 << 20, dtype=np.float32), "layer": 3})

    assert b"".join(body) == b"".join(body)


def test_only_a_small_body_is_joined() -> None:
    small, large = Body({"x": np.zeros(1000, np.uint8)}), Body({"x": np.zeros(100_000, np.uint8)})

    assert small.as_bytes == b"".join(small)
    assert large.as_bytes is None


def test_large_body_is_not_copied() -> None:
    x = np.zeros((4, 8, 1024, 256), np.float16)
    tracemalloc.start()

    for piece in Body({"k": to_numpy(x, "k"), "v": to_numpy(x, "v")}):
        assert piece

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes // 16


def test_tensor_of_4_gib_raises_value_error() -> None:
    x = np.broadcast_to(np.zeros(1, np.uint8), (1 << 32,))

    with pytest.raises(ValueError, match="at most 4294967295 bytes"):
        Body({"x": x})


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x[::2],
        lambda x: x[:, ::-1],
        lambda x: x.T,
        np.asfortranarray,
        lambda x: np.broadcast_to(x, (3, *x.shape)),
    ],
    ids=["strided", "backwards", "transposed", "fortran", "broadcast"],
)
def test_array_in_other_order_is_converted_to_c_order(layout: Any, rng: np.random.Generator) -> None:
    x = layout(rng.standard_normal((6, 64)).astype(np.float16))

    sent = to_numpy(x, "x")

    assert sent.flags.c_contiguous
    assert np.array_equal(sent, x)


def test_array_in_c_order_is_not_copied(rng: np.random.Generator) -> None:
    x = rng.standard_normal((6, 64)).astype(BFLOAT16)

    assert np.shares_memory(to_numpy(x, "x"), x)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8, np.bool_, np.complex64, object, "U3"])
def test_unsupported_dtype_raises_type_error(dtype: Any) -> None:
    with pytest.raises(TypeError, match="k must be float32 or float16 or bfloat16, not"):
        to_numpy(np.zeros((2, 64), dtype), "k")


@pytest.mark.parametrize("x", [None, 1.0, [[1.0] * 64], b"1234", memoryview(b"1234")])
def test_other_types_raise_type_error(x: object) -> None:
    with pytest.raises(TypeError, match=r"must be a NumPy array or an mlx\.core\.array"):
        to_numpy(x, "k")


def test_big_endian_array_raises_value_error() -> None:
    with pytest.raises(ValueError, match="byte order"):
        to_numpy(np.zeros((2, 64), ">f4"), "k")


def test_array_without_axes_raises_value_error() -> None:
    with pytest.raises(ValueError, match="no axes"):
        to_numpy(np.array(1.0, np.float32), "k")


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_mlx_array_keeps_its_bits_and_is_not_copied(name: str) -> None:
    mx = pytest.importorskip("mlx.core")
    x = (mx.arange(4 * 64).reshape(4, 64) / 7).astype(getattr(mx, name))
    mx.eval(x)

    sent = to_numpy(x, "x")

    assert sent.dtype.name == name
    assert sent.tobytes() == bytes(memoryview(x.view(mx.uint8)))
    assert np.shares_memory(sent, np.asarray(x.view(mx.uint8)))


def test_mlx_array_in_other_order_is_converted_to_c_order() -> None:
    mx = pytest.importorskip("mlx.core")
    x = mx.arange(12.0).reshape(3, 4).astype(mx.bfloat16).T

    assert to_numpy(x, "x").tolist() == x.tolist()


def test_mlx_array_of_unsupported_dtype_raises_type_error() -> None:
    mx = pytest.importorskip("mlx.core")

    with pytest.raises(TypeError, match="int32"):
        to_numpy(mx.arange(4), "x")


def test_client_imports_neither_mlx_nor_the_server() -> None:
    heavy = "{'mlx', 'mlx.core', 'msgspec', 'fastapi', 'uvicorn', 'pydantic', 'hadakv_service'}"
    code = f"import hadakv_client, sys; assert not {heavy} & sys.modules.keys(), sys.modules.keys()"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_received_array_is_a_read_only_view() -> None:
    data = bytes(range(8))

    x = from_wire({"dtype": "uint8", "shape": [2, 4], "data": data}, "x", "uint8")

    assert np.shares_memory(x, np.frombuffer(data, np.uint8))
    assert not x.flags.writeable


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (None, "is NoneType, expected a tensor"),
        ([], "is list, expected a tensor"),
        ({}, "dtype None, expected float32"),
        ({"dtype": "float16", "shape": [1], "data": bytes(2)}, "dtype 'float16', expected float32"),
        ({"dtype": ["float32"], "shape": [1], "data": bytes(4)}, "expected float32"),
        ({"dtype": "float32", "shape": [2], "data": bytes(4)}, "4 bytes, expected 8"),
        ({"dtype": "float32", "shape": [1], "data": bytes(5)}, "5 bytes, expected 4"),
        ({"dtype": "float32", "shape": [1], "data": "text"}, "no bytes"),
        ({"dtype": "float32", "shape": [1]}, "no bytes"),
        ({"dtype": "float32", "shape": [], "data": bytes(4)}, "shape"),
        ({"dtype": "float32", "shape": 1, "data": bytes(4)}, "shape"),
        ({"dtype": "float32", "shape": [-1, -1], "data": bytes(4)}, "shape"),
        ({"dtype": "float32", "shape": [1.0], "data": bytes(4)}, "shape"),
        ({"dtype": "float32", "shape": [True], "data": bytes(4)}, "shape"),
        ({"dtype": "float32", "shape": [0, 1 << 63], "data": b""}, "shape"),
        ({"dtype": "float32", "shape": [1] * 65, "data": bytes(4)}, "shape"),
    ],
)
def test_invalid_tensor_raises_protocol_error(tensor: Any, message: str) -> None:
    with pytest.raises(ProtocolError, match=f"x .*{message}"):
        from_wire(msgpack.unpackb(msgpack.packb(tensor)), "x", "float32")
