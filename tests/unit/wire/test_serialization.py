"""Serialization: well-formed bodies, encoded responses and validation errors."""

import random
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hadakv_kernels import Codec
from hadakv_service.errors import InvalidRequest, MalformedBody
from hadakv_service.wire import messages, serialization
from hadakv_service.wire.serialization import LARGE_TENSOR_NBYTES, encode_chunks
from hadakv_service.wire.well_formed import MAX_DEPTH, MAX_ITEMS, check_well_formed
from support.thoroughness import examples

EXAMPLES = settings(derandomize=True, database=None, deadline=None, max_examples=examples(60, exhaustive=120))

KEYS = st.text(max_size=5) | st.integers(-5, 5)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=17) | st.dictionaries(KEYS, inner, max_size=17))

HEADERS = b"\x80\x90\xa0\xc1\xc4\xc7\xc9\xd4\xd9\xdc\xdd\xde\xdf"


def is_well_formed(body: bytes) -> bool:
    try:
        check_well_formed(memoryview(body))
    except MalformedBody:
        return False
    return True


def is_msgpack(body: bytes) -> bool:
    """Whether msgpack finds exactly one value. Skipping checks the structure only."""
    unpacker = msgpack.Unpacker(max_buffer_size=1 << 20)
    unpacker.feed(body)
    try:
        unpacker.skip()
    except (msgpack.OutOfData, msgpack.FormatError, msgpack.StackError):
        return False
    return bool(unpacker.tell() == len(body))


def is_within_bounds(body: bytes) -> bool:
    """Whether a body is within the limits of depth and items."""
    try:
        check_well_formed(memoryview(body))
    except MalformedBody as error:
        return "nested deeper" not in error.detail and "items" not in error.detail
    return True


@EXAMPLES
@given(VALUES)
def test_packed_values_are_well_formed(value: object) -> None:
    body = msgpack.packb(value)

    assert is_well_formed(body) or not is_within_bounds(body)
    assert not is_well_formed(body[:-1])
    assert not is_well_formed(body + b"\xc0")


@EXAMPLES
@given(st.binary(max_size=40))
def test_bytes_are_well_formed_if_msgpack_accepts_them(body: bytes) -> None:
    assert is_well_formed(body) == is_msgpack(body) or not is_within_bounds(body)


@EXAMPLES
@given(VALUES, st.integers(0, 2**32))
def test_mutated_values_agree_with_msgpack(value: object, seed: int) -> None:
    rng = random.Random(seed)
    body = bytearray(msgpack.packb(value))

    for _ in range(3):
        body[rng.randrange(len(body))] = rng.choice([rng.randrange(256), *HEADERS])

        assert is_well_formed(bytes(body)) == is_msgpack(bytes(body)) or not is_within_bounds(bytes(body))


@pytest.mark.parametrize("code", range(256))
def test_every_first_byte_agrees_with_msgpack(code: int) -> None:
    lengths = (b"", b"\x00", b"\x01\x01", b"\x00\x01\x00", b"\x00\x00\x00\x01\xc0\xc0", b"\xff" * 9)

    for rest in (*lengths, bytes(8), bytes(9), bytes(17), b"\xa0" * 31):
        body = bytes([code]) + rest

        assert is_well_formed(body) == is_msgpack(body) or not is_within_bounds(body), rest


@pytest.mark.parametrize(
    ("levels", "good"), [(1, True), (MAX_DEPTH - 1, True), (MAX_DEPTH + 1, False), (100_000, False)]
)
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1k", b"\xdc\x00\x01", b"\xdf\x00\x00\x00\x01\xc0"])
def test_depth_is_limited(opening: bytes, levels: int, good: bool) -> None:
    assert is_well_formed(opening * levels + b"\xc0") == good


@pytest.mark.parametrize(("items", "good"), [(MAX_ITEMS - 10, True), (MAX_ITEMS + 10, False), (10 * MAX_ITEMS, False)])
def test_number_of_items_is_limited(items: int, good: bool) -> None:
    assert is_well_formed(msgpack.packb([None] * items)) == good


# Responses

ARRAYS: list[NDArray[Any]] = [
    np.arange(0, dtype=np.float32),
    np.arange(5, dtype=np.float16),
    np.arange(300, dtype=np.uint8),
    np.zeros((2, 3, 0, 4), np.float32),
    np.arange(LARGE_TENSOR_NBYTES - 1, dtype=np.uint8),
    np.arange(LARGE_TENSOR_NBYTES, dtype=np.uint8),
    np.arange(LARGE_TENSOR_NBYTES + 1, dtype=np.uint8),
    np.arange(3 * LARGE_TENSOR_NBYTES, dtype=np.float32).reshape(3, 4, -1),
    np.arange(3 * LARGE_TENSOR_NBYTES, dtype=np.float32).reshape(3, 4, -1).transpose(2, 0, 1),
    np.ones((2, LARGE_TENSOR_NBYTES), ml_dtypes.bfloat16)[:, ::2],
    np.full(LARGE_TENSOR_NBYTES * 2, 0xC1, np.uint8),
    np.frombuffer(b"\xc4\x10" + b"\xc1" * 16, np.uint8),
    np.frombuffer(b"\xc4\x10" + b"\xc1" * 100, np.uint8),
]
SCALARS = st.integers(0, 2**40) | st.text(max_size=20) | st.none() | st.booleans() | st.floats(allow_nan=False)


@EXAMPLES
@given(st.dictionaries(st.text(max_size=5), SCALARS | st.sampled_from(ARRAYS), max_size=8))
def test_encoded_response_equals_msgpacks(response: dict[str, Any]) -> None:
    tensors = {
        name: serialization.tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in response.items()
    }
    plain = {
        name: {"dtype": value.dtype.name, "shape": value.shape, "data": value.tobytes()}
        if isinstance(value, np.ndarray)
        else value
        for name, value in response.items()
    }

    pieces = encode_chunks(tensors)

    assert b"".join(pieces) == msgpack.packb(plain)


def test_small_tensor_like_a_placeholder_is_kept() -> None:
    small = np.frombuffer(b"\xc4\x10" + b"\xc1" * 16, np.uint8)
    large = np.arange(LARGE_TENSOR_NBYTES, dtype=np.uint8)

    pieces = encode_chunks({"small": small, "large": large})

    assert b"".join(pieces) == msgpack.packb({"small": small.tobytes(), "large": large.tobytes()})


def test_large_tensors_are_not_copied() -> None:
    large, small = np.arange(LARGE_TENSOR_NBYTES, dtype=np.uint8), np.arange(9, dtype=np.uint8)

    pieces = encode_chunks(
        {"a": serialization.tensor(large), "b": serialization.tensor(small), "c": serialization.tensor(large)}
    )

    views = [piece for piece in pieces if isinstance(piece, memoryview)]
    assert len(views) == 2
    assert all(np.shares_memory(np.frombuffer(view, np.uint8), large) for view in views)


def test_other_types_cannot_be_encoded() -> None:
    with pytest.raises(TypeError, match="cannot encode object"):
        encode_chunks({"x": object()})


# Requests

TENSOR = {"dtype": "float16", "shape": [1, 1, 2, 64], "data": bytes(256)}


def test_tensors_are_views_of_the_body() -> None:
    body = np.frombuffer(msgpack.packb({"k": TENSOR, "v": TENSOR}), np.uint8)

    parsed = serialization.decode_body(messages.AppendBody, body.data)

    for tensor in (parsed.k, parsed.v):
        assert np.shares_memory(tensor.array("k", "float16"), body)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float32", np.array([1.5, -2, np.inf], np.float32)),
        ("float16", np.array([1.5, -2, 65504], np.float16)),
        ("bfloat16", np.array([1.5, -2, 1e38], ml_dtypes.bfloat16)),
        ("uint8", np.array([0, 1, 255], np.uint8)),
    ],
)
def test_tensor_has_the_values_of_its_bytes(dtype: str, values: NDArray[Any]) -> None:
    tensor = messages.Tensor(dtype, [3], memoryview(b"xyz" + values.tobytes())[3:])  # type: ignore[arg-type]

    array = tensor.array("x", dtype)

    assert array.dtype == values.dtype
    assert array.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({"k": TENSOR}, "v", "is missing"),
        ({"k": TENSOR, "v": TENSOR, "w": 1}, "w", "is not known"),
        ({"k": TENSOR | {"x": 1}, "v": TENSOR}, "k.x", "is not known"),
        ({"k": {"shape": [1], "data": b""}, "v": TENSOR}, "k.dtype", "is missing"),
        ({"k": TENSOR, "v": TENSOR, "codec": {"k": {"q": 1}}}, "codec.k.q", "is not known"),
        ({"k": TENSOR, "v": TENSOR, "layer": "x"}, "layer", "Expected `int`, got `str`"),
        ([], "body", "Expected `object`, got `array`"),
    ],
)
def test_validation_error_names_field_and_reason(body: Any, field: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        serialization.decode_body(messages.AppendBody, msgpack.packb(body))

    assert rejected.value.fields["errors"] == [{"field": field, "reason": reason}]


def test_json_body_is_decoded() -> None:
    parsed = serialization.decode_body(messages.SessionBody, b'{"layers": 3, "codec": {"k": {"bits": 2}}}', json=True)

    assert parsed.layers == 3
    assert parsed.codec is not None
    assert parsed.codec.codecs() == (Codec(bits=2), Codec())


@pytest.mark.parametrize("body", [b"", b"{", b'{"layers": 3} x', b"\xff\xfe"])
def test_invalid_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        serialization.decode_body(messages.SessionBody, body, json=True)
