"""Every kind of bad input the contract names, through a real server; afterwards everything is as it was."""

import hashlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray

from contract import JSON, MSGPACK, Answer, Caller, Json, append_body, array, connect, status_line, stream, tensor
from hadakv_kernels import Codec
from hadakv_service.spawn import RunningService, running_service
from hadakv_service.store import PAGE_NBYTES, RUN_NBYTES, SESSION_NBYTES

RNG = np.random.default_rng(1)
K, V = (RNG.standard_normal((3, 2, 5, 64)).astype(np.float16) for _ in "kv")
VALID = append_body(K, V)
PACKED = msgpack.packb(VALID)

MAX_BODY = 64 * 1024
BUDGET = 256 * 1024


@pytest.fixture
def kept(caller: Caller, session: str) -> str:
    """A session that holds something."""
    assert caller.append(session, K, V).status == 201
    return session


# 400: the body cannot be parsed


def nested(levels: int, opening: bytes) -> bytes:
    return opening * levels + b"\xc0"


MALFORMED = {
    "nothing": b"",
    "text": b"hello",
    "JSON": b'{"k": 1}',
    "the one byte msgpack never uses": b"\xc1",
    "a byte after the end": PACKED + b"\x00",
    "the same body twice": PACKED * 2,
    "arrays in arrays": nested(100, b"\x91"),
    "maps in maps": nested(100, b"\x81\xa1k"),
    "arrays nested beyond any stack": nested(200_000, b"\x91"),
    "maps nested beyond any stack": nested(200_000, b"\x81\xa1k"),
    "a deep value of an unknown key": b"\x81\xa1x" + nested(20, b"\x91"),
    "a deep map inside a tensor": b"\x81\xa1k\x81\xa4data" + nested(20, b"\x81\xa1k"),
    "a map of ten thousand keys": msgpack.packb({f"key{i}": i for i in range(10_000)}),
    "an array that says it has four billion items": b"\xdd\xff\xff\xff\xff",
    "a map that says it has four billion keys": b"\xdf\xff\xff\xff\xff",
    "a string that says it has four billion bytes": b"\xdb\xff\xff\xff\xff",
    "a bin that says it has four billion bytes": b"\xc6\xff\xff\xff\xff",
    "an ext that says it has four billion bytes": b"\xc9\xff\xff\xff\xff\x01",
    "a shape that says it has four billion axes": b"\x81\xa1k\x83\xa5dtype\xa7float32\xa5shape\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_body_that_is_not_one_msgpack_value_is_malformed(caller: Caller, kept: str, body: bytes) -> None:
    before = caller.snapshot(kept)

    answers = [
        caller.send("POST", f"/sessions/{kept}/kv", body),
        caller.send("POST", "/encode", body),
        caller.send("POST", "/decode", body),
        caller.send("PUT", f"/sessions/{kept}", body) if body else None,
    ]

    for answer in filter(None, answers):
        answer.problem(400, "malformed-body")
    assert caller.snapshot(kept) == before


def test_a_body_cut_short_anywhere_is_malformed(caller: Caller, kept: str) -> None:
    before = caller.snapshot(kept)
    cuts = [*range(120), *range(120, len(PACKED), 97), len(PACKED) - 1]

    answers = [caller.send("POST", f"/sessions/{kept}/kv", PACKED[:cut]) for cut in cuts]

    for answer in answers:
        answer.problem(400, "malformed-body")
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize("body", [b"{", b"nothing", b'{"layers": 1} 2', b'{"layers": 1,}', b"\xff"])
def test_json_that_is_not_json_is_malformed(caller: Caller, kept: str, body: bytes) -> None:
    before = caller.snapshot(kept)

    answer = caller.send("PUT", f"/sessions/{kept}", body, JSON)

    answer.problem(400, "malformed-body")
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"layers": ' * 100_000, b'{"x": ' + b"[" * 100_000])
def test_json_nested_beyond_any_stack_is_refused(caller: Caller, kept: str, body: bytes) -> None:
    before = caller.snapshot(kept)

    answer = caller.send("PUT", f"/sessions/{kept}", body, JSON)

    assert answer.status in (400, 422)
    assert caller.snapshot(kept) == before


# 422: the body says something it may not

X = tensor(K)


def with_k(**changes: Any) -> Json:
    return {"k": X | changes, "v": tensor(V)}


def both(**changes: Any) -> Json:
    return {"k": X | changes, "v": tensor(V) | changes}


def without(body: Json, key: str) -> Json:
    return {name: value for name, value in body.items() if name != key}


def zeros(*shape: int) -> Json:
    return append_body(np.zeros(shape, np.float16), np.zeros(shape, np.float16))


INVALID_APPENDS: dict[str, tuple[Any, str]] = {
    "is an array": ([1, 2], "body"),
    "is nil": (None, "body"),
    "is a number": (7, "body"),
    "is an empty map": ({}, "k"),
    "has no k": (without(VALID, "k"), "k"),
    "has no v": (without(VALID, "v"), "v"),
    "has an unknown key": (VALID | {"colour": "red"}, "colour"),
    "has a key that is a number": ({1: 2}, "body"),
    "has k a number": (VALID | {"k": 1}, "k"),
    "has k nil": (VALID | {"k": None}, "k"),
    "has k an array": (VALID | {"k": [1.0]}, "k"),
    "has a tensor without dtype": (VALID | {"k": without(X, "dtype")}, "k.dtype"),
    "has a tensor without shape": (VALID | {"k": without(X, "shape")}, "k.shape"),
    "has a tensor without data": (VALID | {"v": without(X, "data")}, "v.data"),
    "has a tensor with an unknown key": (with_k(order="F"), "k.order"),
    "has an unknown dtype": (with_k(dtype="float64"), "k.dtype"),
    "has a dtype that is a number": (with_k(dtype=16), "k.dtype"),
    "has k of uint8": (append_body(np.zeros((1, 1, 1, 64), np.uint8), np.zeros((1, 1, 1, 64), np.uint8)), "k.dtype"),
    "has a shape that is a number": (with_k(shape=5), "k.shape"),
    "has a shape of text": (with_k(shape="3255"), "k.shape"),
    "has an empty shape": (with_k(shape=[]), "k.shape"),
    "has a shape with a negative axis": (with_k(shape=[3, 2, -5, 64]), "k.shape[2]"),
    "has a shape with a broken axis": (with_k(shape=[3, 2, 5.5, 64]), "k.shape[2]"),
    "has a shape with a huge axis": (with_k(shape=[2**64 - 1, 2, 5, 64]), "k.data"),
    "has a shape with a huge axis and an empty one": (both(shape=[2**62, 2, 0, 64], data=b""), "k.shape"),
    "has a shape with two large axes and an empty one": (both(shape=[2**39, 2**39, 0, 64], data=b""), "k.shape"),
    "has a shape with a large axis and an empty one": (both(shape=[1, 2**39, 0, 64], data=b""), "k.shape"),
    "has a shape of nine axes": (with_k(shape=[1] * 9), "k.shape"),
    "has data that is text": (with_k(data="x" * len(X["data"])), "k.data"),
    "has data that is an array": (with_k(data=[1, 2]), "k.data"),
    "has data one byte short": (with_k(data=X["data"][:-1]), "k.data"),
    "has data one byte long": (with_k(data=X["data"] + b"\x00"), "k.data"),
    "has no bytes of data": (with_k(data=b""), "k.data"),
    "has v of another length than its shape says": ({"k": X, "v": X | {"data": X["data"] * 2}}, "v.data"),
    "has two axes": (zeros(5, 64), "k.shape"),
    "has five axes": (zeros(1, 1, 1, 1, 64), "k.shape"),
    "has head_dim 96": (zeros(1, 2, 5, 96), "k.shape"),
    "has head_dim 1": (zeros(1, 2, 5, 1), "k.shape"),
    "has head_dim 0": (zeros(1, 2, 5, 0), "k.shape"),
    "has head_dim 1024": (zeros(1, 1, 1, 1024), "k.shape"),
    "has no layers": (zeros(0, 2, 5, 64), "k.shape"),
    "has no heads": (zeros(1, 0, 5, 64), "k.shape"),
    "has k and v of different shapes": (append_body(K, V[:, :, :4]), "v.shape"),
    "has k and v of as many elements in different shapes": (append_body(K, V.reshape(3, 5, 2, 64)), "v.shape"),
    "has k and v of different dtypes": (append_body(K, V.astype(np.float32)), "v.dtype"),
    "has a negative layer": (VALID | {"layer": -1}, "layer"),
    "has a layer that is text": (VALID | {"layer": "0"}, "layer"),
    "has a layer that is nil": (VALID | {"layer": None}, "layer"),
    "has a layer beyond all models": (VALID | {"layer": 2**63}, "layer"),
    "has a negative position": (VALID | {"position": -1}, "position"),
    "has a position that is a fraction": (VALID | {"position": 0.5}, "position"),
    "has a codec that is text": (VALID | {"codec": "4-bit"}, "codec"),
    "has a codec with an unknown option": (VALID | {"codec": {"colour": 1}}, "codec.colour"),
    "has 7 bits": (VALID | {"codec": {"bits": 7}}, "codec.bits"),
    "has bits that are text": (VALID | {"codec": {"bits": "4"}}, "codec.bits"),
    "has bits that are true": (VALID | {"codec": {"bits": True}}, "codec.bits"),
    "has an unknown rotation": (VALID | {"codec": {"rotation": "fourier"}}, "codec.rotation"),
    "has an unknown layout": (VALID | {"codec": {"layout": "sparse"}}, "codec.layout"),
    "has an unknown codebook": (VALID | {"codec": {"codebook": "mine"}}, "codec.codebook"),
    "has an unknown norm": (VALID | {"codec": {"norm": "l1"}}, "codec.norm"),
    "has an unknown kind": (VALID | {"codec": {"kind": "float8"}}, "codec.kind"),
    "has a scale of 0": (VALID | {"codec": {"d512_scale": 0.0}}, "codec.d512_scale"),
    "has a scale that is not a number": (VALID | {"codec": {"d512_scale": float("nan")}}, "codec.d512_scale"),
    "has an endless scale": (VALID | {"codec": {"d512_scale": float("inf")}}, "codec.d512_scale"),
    "has 7 bits for v": (VALID | {"codec": {"v": {"bits": 7}}}, "codec.v.bits"),
    "has an unknown option for k": (VALID | {"codec": {"k": {"colour": 1}}}, "codec.k.colour"),
    "has one codec and one for k": (VALID | {"codec": {"bits": 4, "k": {"bits": 5}}}, "codec"),
}


def assert_names_field(answer: Answer, field: str) -> None:
    problem = answer.problem(422, "invalid-request")
    assert [error["field"] for error in problem["errors"]] == [field], problem
    assert all(error["reason"] for error in problem["errors"]), problem


@pytest.mark.parametrize(("body", "field"), INVALID_APPENDS.values(), ids=INVALID_APPENDS)
def test_an_append_is_refused_that(caller: Caller, kept: str, body: Any, field: str) -> None:
    before = caller.snapshot(kept)

    answer = caller.post(f"/sessions/{kept}/kv", body)

    assert_names_field(answer, field)
    assert caller.snapshot(kept) == before


def test_a_refused_append_makes_no_session(caller: Caller, session: str) -> None:
    bodies = [body for body, _ in INVALID_APPENDS.values()]

    answers = [caller.post(f"/sessions/{session}/kv", body) for body in bodies]

    assert {answer.status for answer in answers} == {422}
    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


INVALID_SESSIONS: dict[str, tuple[Any, str]] = {
    "is an array": ([], "body"),
    "has an unknown key": ({"heads": 2}, "heads"),
    "has layers 0": ({"layers": 0}, "layers"),
    "has layers beyond all models": ({"layers": 1025}, "layers"),
    "has layers of text": ({"layers": "4"}, "layers"),
    "has kv_heads 0": ({"kv_heads": 0}, "kv_heads"),
    "has head_dim 100": ({"head_dim": 100}, "head_dim"),
    "has head_dim -64": ({"head_dim": -64}, "head_dim"),
    "has a window of 0": ({"window": 0}, "window"),
    "has a window of -1": ({"window": -1}, "window"),
    "has a ttl of 0": ({"ttl_seconds": 0}, "ttl_seconds"),
    "has a ttl before now": ({"ttl_seconds": -1.5}, "ttl_seconds"),
    "has a ttl that is not a number": ({"ttl_seconds": float("nan")}, "ttl_seconds"),
    "has an endless ttl": ({"ttl_seconds": float("inf")}, "ttl_seconds"),
    "has a ttl beyond all dates": ({"ttl_seconds": 1e12}, "ttl_seconds"),
    "has a ttl beyond all clocks": ({"ttl_seconds": 1e308}, "ttl_seconds"),
    "has 7 bits": ({"codec": {"bits": 7}}, "codec.bits"),
    "has 7 bits for k": ({"codec": {"k": {"bits": 7}}}, "codec.k.bits"),
}


@pytest.mark.parametrize(("body", "field"), INVALID_SESSIONS.values(), ids=INVALID_SESSIONS)
def test_a_session_is_refused_that(caller: Caller, session: str, body: Any, field: str) -> None:
    answer = caller.put(f"/sessions/{session}", body)

    assert_names_field(answer, field)
    caller.get(f"/sessions/{session}").problem(404, "session-not-found")
    assert caller.get("/sessions").status == 200


ROW = {"dtype": "uint8", "shape": [2, 32], "data": bytes(64)}
NORM = {"dtype": "float32", "shape": [2, 1], "data": bytes(8)}
DECODE = {"packed": ROW, "norms": NORM, "head_dim": 64}

INVALID_CODEC_CALLS: dict[str, tuple[str, Any, str]] = {
    "encodes nothing": ("/encode", {}, "x"),
    "encodes with an unknown key": ("/encode", {"x": X, "y": X}, "y"),
    "encodes a number": ("/encode", {"x": 1.0}, "x"),
    "encodes uint8": ("/encode", {"x": ROW}, "x.dtype"),
    "encodes head_dim 60": ("/encode", {"x": tensor(np.zeros((2, 60), np.float32))}, "x.shape"),
    "encodes too little data": ("/encode", {"x": X | {"data": b"1"}}, "x.data"),
    "encodes a huge empty shape": ("/encode", {"x": X | {"shape": [2**39, 2**39, 0, 64], "data": b""}}, "x.shape"),
    "encodes 7 bits": ("/encode", {"x": X, "codec": {"bits": 7}}, "codec.bits"),
    "encodes with diagnostics that are text": ("/encode", {"x": X, "diagnostics": "yes"}, "diagnostics"),
    "decodes without head_dim": ("/decode", without(DECODE, "head_dim"), "head_dim"),
    "decodes without packed": ("/decode", without(DECODE, "packed"), "packed"),
    "decodes without norms": ("/decode", without(DECODE, "norms"), "norms"),
    "decodes values that are quantized": ("/decode", DECODE | {"values": X}, "values"),
    "decodes packed float16": ("/decode", DECODE | {"codec": {"kind": "float16"}}, "packed"),
    "decodes float16 without values": ("/decode", {"head_dim": 64, "codec": {"kind": "float16"}}, "values"),
    "decodes head_dim 63": ("/decode", DECODE | {"head_dim": 63}, "head_dim"),
    "decodes rows of another codec": ("/decode", DECODE | {"codec": {"bits": 5}}, "packed.shape"),
    "decodes rows of another head_dim": ("/decode", DECODE | {"head_dim": 128}, "packed.shape"),
    "decodes too few norms": ("/decode", DECODE | {"norms": NORM | {"shape": [1, 1], "data": bytes(4)}}, "norms.shape"),
    "decodes norms of float16": ("/decode", DECODE | {"norms": X}, "norms.dtype"),
    "decodes to float64": ("/decode", DECODE | {"form": "float64"}, "form"),
    "decodes to packed": ("/decode", DECODE | {"form": "packed"}, "form"),
    "decodes a huge empty shape": (
        "/decode",
        DECODE | {"packed": ROW | {"shape": [2**39, 2**39, 0, 32], "data": b""}},
        "packed.shape",
    ),
}


@pytest.mark.parametrize(("path", "body", "field"), INVALID_CODEC_CALLS.values(), ids=INVALID_CODEC_CALLS)
def test_a_codec_call_is_refused_that(caller: Caller, path: str, body: Any, field: str) -> None:
    answer = caller.post(path, body)

    assert_names_field(answer, field)


INVALID_QUERIES = {
    "start=-1": "start",
    "start=one": "start",
    "start=6": "start",
    "start=3&stop=2": "start",
    "stop=-1": "stop",
    "stop=1.5": "stop",
    "layers=1": "layers",
    "layers=a:b": "layers",
    "layers=2:1": "layers",
    "layers=0:4": "layers",
    "layers=-1:2": "layers",
    "layers=0:1:2": "layers",
    "form=float64": "form",
    "form=": "form",
    "layout=spiral": "layout",
}


@pytest.mark.parametrize("query", INVALID_QUERIES)
def test_a_read_is_refused_with(caller: Caller, kept: str, query: str) -> None:
    before = caller.snapshot(kept)

    answer = caller.get(f"/sessions/{kept}/kv?{query}")

    assert_names_field(answer, INVALID_QUERIES[query])
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=1001", "limit=many"])
def test_a_list_is_refused_with(caller: Caller, query: str) -> None:
    answer = caller.get(f"/sessions?{query}")

    assert_names_field(answer, "limit")


# 422: values that are not finite

NOT_FINITE = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf, "a norm that overflows": 1e20}
QUANTIZED: Json = {}
FLOAT16: Json = {"kind": "float16"}


def spoiled(values: NDArray[Any], places: list[tuple[int, ...]], value: float) -> NDArray[Any]:
    copy = values.astype(np.float32)
    for place in places:
        copy[place] = value
    return copy


@pytest.mark.parametrize("name", "kv")
@pytest.mark.parametrize("codec", [QUANTIZED, FLOAT16, {"rotation": "none"}, {"norm": "unbiased", "bits": 2}], ids=str)
@pytest.mark.parametrize("value", NOT_FINITE.values(), ids=NOT_FINITE)
def test_a_vector_that_is_not_finite_is_refused_with_its_place(
    caller: Caller, session: str, name: str, codec: Json, value: float
) -> None:
    caller.append(session, K, V, codec=codec)
    before = caller.snapshot(session)
    tensors = {"k": K.astype(np.float32), "v": V.astype(np.float32)}
    tensors[name] = spoiled(tensors[name], [(1, 1, 3, 17), (1, 1, 4, 0), (2, 0, 0, 0)], value)

    answer = caller.append(session, **tensors)

    problem = answer.problem(422, "non-finite")
    assert {axis: problem[axis] for axis in ("stream", "layer", "head", "token")} == {
        "stream": name,
        "layer": 1,
        "head": 1,
        "token": 3,
    }
    assert [error["field"] for error in problem["errors"]] == [name]
    assert problem["detail"].endswith("at layer 1, head 1, token 3; nothing was stored")
    assert caller.snapshot(session) == before


def test_the_place_counts_layers_from_the_first_of_the_session(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"layers": 32})
    before = caller.snapshot(session)

    answer = caller.append(session, spoiled(K, [(2, 0, 1, 0)], np.nan), V.astype(np.float32), layer=20)

    problem = answer.problem(422, "non-finite")
    assert (problem["stream"], problem["layer"], problem["head"], problem["token"]) == ("k", 22, 0, 1)
    assert caller.snapshot(session) == before


def test_one_layer_alone_has_its_place_named_too(caller: Caller, session: str) -> None:
    answer = caller.append(session, K[0].astype(np.float32), spoiled(V[0], [(1, 4, 63)], np.inf), layer=3)

    problem = answer.problem(422, "non-finite")
    assert (problem["stream"], problem["layer"], problem["head"], problem["token"]) == ("v", 3, 1, 4)
    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_k_is_named_where_both_streams_are_not_finite(caller: Caller, session: str) -> None:
    answer = caller.append(session, spoiled(K, [(2, 1, 4, 9)], np.nan), spoiled(V, [(0, 0, 0, 0)], np.nan))

    assert answer.problem(422, "non-finite")["stream"] == "k"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_value_beyond_float16_is_refused_where_it_is_to_be_kept_as_float16(
    caller: Caller, session: str, dtype: str
) -> None:
    size = {"float32": 4, "bfloat16": 2}[dtype]
    k: Json = {"dtype": dtype, "shape": [1, 1, 2, 64], "data": bytes(2 * 64 * size)}
    beyond = struct.pack("<f", 65536.0)[-size:]
    v = k | {"data": k["data"][: -len(beyond)] + beyond}

    answer = caller.post(f"/sessions/{session}/kv", {"k": k, "v": v, "codec": {"v": {"kind": "float16"}}})

    problem = answer.problem(422, "non-finite")
    assert (problem["stream"], problem["token"]) == ("v", 1)
    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_the_largest_float16_is_kept(caller: Caller, session: str) -> None:
    k = np.full((1, 1, 1, 64), 65504, np.float16)

    answer = caller.append(session, k, -k, codec=FLOAT16)

    assert answer.status == 201
    assert array(answer.body["v"]["values"]).tobytes() == (-k).tobytes()


@pytest.mark.parametrize("value", NOT_FINITE.values(), ids=NOT_FINITE)
@pytest.mark.parametrize("more", [{}, {"codec": FLOAT16}, {"diagnostics": True}], ids=str)
def test_encode_refuses_what_is_not_finite_and_says_where(caller: Caller, more: Json, value: float) -> None:
    x = spoiled(K, [(1, 0, 2, 5)], value)

    answer = caller.post("/encode", {"x": tensor(x), **more})

    assert answer.problem(422, "non-finite")["stream"] == "x"
    # The twelfth vector, counted from 0, over all leading axes.
    assert answer.body["detail"] == "x: has NaN, infinity or overflow at row 12"


# 409: at odds with what is stored


@pytest.mark.parametrize(
    ("shape", "axis", "stored"),
    [((3, 1, 5, 64), "kv_heads", 2), ((3, 4, 5, 64), "kv_heads", 2), ((3, 2, 5, 128), "head_dim", 64)],
)
def test_an_append_of_another_shape_is_refused(
    caller: Caller, kept: str, shape: tuple[int, ...], axis: str, stored: int
) -> None:
    before = caller.snapshot(kept)
    values = np.ones(shape, np.float16)

    answer = caller.append(kept, values, values)

    assert answer.problem(409, "shape-mismatch")[axis] == stored
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize("layer", [2, 4, 1000])
def test_an_append_beyond_the_declared_layers_is_refused(caller: Caller, session: str, layer: int) -> None:
    caller.put(f"/sessions/{session}", {"layers": 4})
    before = caller.snapshot(session)

    answer = caller.append(session, K, V, layer=layer)

    assert answer.problem(409, "shape-mismatch")["layers"] == 4
    assert caller.snapshot(session) == before


@pytest.mark.parametrize("declared", [{"kv_heads": 3}, {"head_dim": 128}])
def test_an_append_at_odds_with_the_declared_shape_is_refused(caller: Caller, session: str, declared: Json) -> None:
    caller.put(f"/sessions/{session}", declared)
    before = caller.snapshot(session)

    answer = caller.append(session, K, V)

    problem = answer.problem(409, "shape-mismatch")
    assert problem.items() >= declared.items()
    assert caller.snapshot(session) == before


@pytest.mark.parametrize(
    "codec", [{"bits": 5}, {"norm": "unbiased"}, {"kind": "float16"}, {"k": {}, "v": {"bits": 8}}, {"k": {"bits": 2}}]
)
def test_an_append_with_another_codec_is_refused(caller: Caller, kept: str, codec: Json) -> None:
    before = caller.snapshot(kept)

    answer = caller.append(kept, K, V, codec=codec)

    assert answer.problem(409, "codec-mismatch")["codec"]["k"]["bits"] == 4
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize("position", [0, 1, 4, 6, 2**63])
def test_an_append_that_is_not_at_the_end_is_refused_with_the_length(caller: Caller, kept: str, position: int) -> None:
    before = caller.snapshot(kept)

    answer = caller.append(kept, V, K, position=position)

    assert answer.problem(409, "position-conflict")["length"] == 5
    assert caller.snapshot(kept) == before


def test_an_append_in_the_middle_of_nothing_is_refused(caller: Caller, session: str) -> None:
    answer = caller.append(session, K, V, position=3)

    assert answer.problem(409, "position-conflict")["length"] == 0
    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_an_append_to_layers_of_different_lengths_is_refused(caller: Caller, kept: str) -> None:
    caller.append(kept, K[:1, :, :2], V[:1, :, :2])
    before = caller.snapshot(kept)

    answers = [caller.append(kept, K, V), caller.append(kept, K, V, position=5), caller.append(kept, K, V, position=7)]

    assert [answer.problem(409, "position-conflict")["length"] for answer in answers] == [5, 5, 5]
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"layers": 2}, "layers"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_dim": 128}, "head_dim"),
        ({"codec": {"bits": 5}}, "codec"),
        ({"codec": {"v": {"norm": "unbiased"}}}, "codec"),
        ({"window": 3}, "window"),
        ({"ttl_seconds": 60}, "ttl_seconds"),
        ({"kv_heads": 2, "head_dim": 512}, "head_dim"),
    ],
    ids=str,
)
def test_a_session_that_exists_cannot_be_made_another(caller: Caller, kept: str, body: Json, field: str) -> None:
    before = caller.snapshot(kept)

    answer = caller.put(f"/sessions/{kept}", body)

    assert answer.problem(409, "session-exists")["field"] == field
    assert caller.snapshot(kept) == before


# 404 and 405


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/sessions/{}"), ("DELETE", "/sessions/{}"), ("GET", "/sessions/{}/kv")]
)
def test_a_session_that_was_never_made_is_not_found(caller: Caller, session: str, method: str, path: str) -> None:
    answer = caller.send(method, path.format(session))

    assert answer.problem(404, "session-not-found")["session"] == session


def test_a_deleted_session_is_not_found(caller: Caller, kept: str) -> None:
    caller.delete(f"/sessions/{kept}")

    answers = [
        caller.delete(f"/sessions/{kept}"),
        caller.get(f"/sessions/{kept}"),
        caller.get(f"/sessions/{kept}/kv"),
    ]

    for answer in answers:
        answer.problem(404, "session-not-found")


@pytest.mark.parametrize("path", ["/nowhere", "/sessions/", "/sessions/a/b/c", "/encode/", "/sessions/a/kv/"])
def test_a_path_there_is_nothing_at_is_not_found(caller: Caller, path: str) -> None:
    answer = caller.get(path)

    answer.problem(404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/sessions/a/kv", {"GET", "POST"}),
        ("DELETE", "/sessions/a/kv", {"GET", "POST"}),
        ("POST", "/sessions/a", {"GET", "PUT", "DELETE"}),
        ("DELETE", "/sessions", {"GET"}),
        ("GET", "/encode", {"POST"}),
        ("PUT", "/decode", {"POST"}),
        ("POST", "/healthz", {"GET"}),
    ],
)
def test_a_method_a_path_does_not_have_is_refused_with_those_it_has(
    caller: Caller, method: str, path: str, allowed: set[str]
) -> None:
    answer = caller.send(method, path)

    answer.problem(405, "method-not-allowed")
    assert set(answer.headers["allow"].replace(" ", "").split(",")) == allowed


# 413


@pytest.fixture(scope="module")
def small() -> Iterator[RunningService]:
    """A service that takes bodies of 64 KiB at most."""
    with running_service("--max-body", str(MAX_BODY)) as service:
        yield service


@pytest.mark.parametrize("path", ["/sessions/large/kv", "/encode", "/decode"])
@pytest.mark.parametrize("length", [MAX_BODY + 1, 10**12])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"], ids=["at once", "after 100 Continue"])
def test_a_body_that_says_it_is_too_large_is_refused_before_any_of_it_is_sent(
    small: RunningService, path: str, length: int, expect: str
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {MSGPACK}\r\nContent-Length: {length}\r\n{expect}\r\n"

    with connect(small.url) as connection:
        connection.sendall(head.encode())
        line = status_line(connection)

    assert line.startswith(b"HTTP/1.1 413 ")


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


def test_a_chunked_body_is_refused_once_it_is_too_large(small: RunningService) -> None:
    head = (
        f"POST /sessions/large/kv HTTP/1.1\r\nHost: x\r\nContent-Type: {MSGPACK}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )

    with connect(small.url) as connection:
        connection.sendall(head.encode() + chunked(*[bytes(1024)] * 64, b"!"))
        line = status_line(connection)

    assert line.startswith(b"HTTP/1.1 413 ")


def test_a_too_large_body_leaves_the_session_as_it_was(small: RunningService, session: str) -> None:
    with Caller(small.url) as caller:
        caller.append(session, K, V)
        before = caller.snapshot(session)
        large = np.ones((1, 2, 512, 64), np.float16)

        answer = caller.append(session, large, large)

        assert answer.problem(413, "body-too-large")["limit"] == MAX_BODY
        assert caller.snapshot(session) == before


@pytest.mark.parametrize("framing", ["Content-Length", "chunked"])
def test_a_body_of_exactly_the_limit_is_read(small: RunningService, framing: str) -> None:
    body = bytes(MAX_BODY)

    with Caller(small.url) as caller:
        content = body if framing == "Content-Length" else iter([body[:1000], body[1000:]])
        response = caller.http.post("/encode", content=content, headers={"content-type": MSGPACK})

    assert response.status_code == 400, "msgpack's 0 with bytes after its end: it was read"


def test_a_read_that_asks_for_more_than_a_body_may_have_is_refused(small: RunningService, session: str) -> None:
    with Caller(small.url) as caller:
        part = np.ones((1, 2, 100, 64), np.float16)
        for _ in range(2):
            caller.append(session, part, part, codec={"bits": 2})

        answer = caller.get(f"/sessions/{session}/kv", form="float32")

        assert answer.problem(422, "answer-too-large")["limit"] == MAX_BODY
        assert caller.get(f"/sessions/{session}/kv", form="float32", stop=20).status == 200


# 415


@pytest.mark.parametrize("content_type", ["text/plain", JSON, "application/octet-stream", "multipart/form-data", ""])
def test_an_append_of_another_content_type_is_refused(caller: Caller, kept: str, content_type: str) -> None:
    before = caller.snapshot(kept)

    answers = [
        caller.send("POST", f"/sessions/{kept}/kv", PACKED, content_type),
        caller.send("POST", "/encode", PACKED, content_type),
        caller.send("POST", "/decode", PACKED, content_type),
    ]

    for answer in answers:
        answer.problem(415, "unsupported-media-type")
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_session_of_another_content_type_is_refused(caller: Caller, session: str, content_type: str) -> None:
    answer = caller.send("PUT", f"/sessions/{session}", b'{"layers": 1}', content_type)

    answer.problem(415, "unsupported-media-type")
    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_an_append_without_a_content_type_is_refused(caller: Caller, session: str) -> None:
    response = caller.http.post(f"/sessions/{session}/kv", content=PACKED)

    assert response.status_code == 415


@pytest.mark.parametrize(
    "content_type", ["application/x-msgpack", "application/vnd.msgpack", "Application/MsgPack; charset=binary"]
)
def test_every_name_of_msgpack_is_understood(caller: Caller, session: str, content_type: str) -> None:
    answer = caller.send("POST", f"/sessions/{session}/kv", PACKED, content_type)

    assert answer.status == 201
    assert answer.body["k"] == stream(K, Codec())


# 507


@pytest.fixture
def tiny() -> Iterator[Caller]:
    """A client of a fresh service that keeps 256 KiB."""
    with running_service("--memory-budget", str(BUDGET)) as service, Caller(service.url) as caller:
        yield caller


def tokens(count: int) -> NDArray[np.float16]:
    """One layer and head: at the default codec 72 bytes a token, K and V together."""
    return np.random.default_rng(count).standard_normal((1, 1, count, 64)).astype(np.float16)


def beside(pages: int) -> int:
    """What a session of one layer is counted as beside its packed bytes."""
    return SESSION_NBYTES + RUN_NBYTES + pages * PAGE_NBYTES


def test_an_append_larger_than_the_budget_is_refused_and_nothing_is_evicted_in_vain(tiny: Caller) -> None:
    for name in ("one", "two", "three"):
        tiny.append(name, tokens(500), tokens(500))
    before = [tiny.snapshot(name) for name in ("one", "two", "three")]
    used = tiny.used_nbytes()

    made = tiny.append("new", tokens(4000), tokens(4000))
    grown = tiny.append("two", tokens(3500), tokens(3500))

    for answer, nbytes in ((made, 4000 * 72), (grown, 3500 * 72)):
        problem = answer.problem(507, "insufficient-storage")
        assert problem["budget"] == BUDGET
        assert nbytes < problem["needed"] < nbytes + 32_000, "the packed bytes, and what is kept beside them"
    tiny.get("/sessions/new").problem(404, "session-not-found")
    assert [tiny.snapshot(name) for name in ("one", "two", "three")] == before
    assert tiny.used_nbytes() == used == 3 * (500 * 72 + beside(2))


def test_the_sessions_unused_for_longest_make_room_where_that_helps(tiny: Caller) -> None:
    for name in ("one", "two", "three"):
        tiny.append(name, tokens(1000), tokens(1000))
    tiny.read("one")
    before = tiny.snapshot("one")

    answer = tiny.append("new", tokens(1200), tokens(1200))

    assert answer.status == 201
    assert [entry["session"] for entry in tiny.get("/sessions").body["sessions"]] == ["new", "one", "three"]
    assert tiny.snapshot("one") == before
    assert tiny.used_nbytes() == 3200 * 72 + 2 * beside(4) + beside(5) <= BUDGET


def test_a_session_may_take_the_whole_budget_and_not_a_token_more(tiny: Caller) -> None:
    most = (BUDGET - beside(14)) // 72

    filled = tiny.append("one", tokens(most), tokens(most))
    before = tiny.snapshot("one")
    refused = tiny.append("one", tokens(1), tokens(1))

    assert filled.status == 201
    refused.problem(507, "insufficient-storage")
    assert tiny.snapshot("one") == before


def test_what_a_refused_append_reserved_is_given_back(tiny: Caller) -> None:
    k = spoiled(tokens(3000), [(0, 0, 2999, 0)], np.nan)

    answers = [tiny.append("one", k, k) for _ in range(5)]

    assert {answer.status for answer in answers} == {422}
    assert tiny.used_nbytes() == 0
    assert tiny.append("one", tokens(3200), tokens(3200)).status == 201


def test_sessions_without_tokens_stay_within_the_budget(tiny: Caller) -> None:
    most = BUDGET // SESSION_NBYTES

    made = [tiny.put(f"/sessions/{i:03}", {"window": 10 + i}).status for i in range(most + 20)]
    listed = tiny.get("/sessions", limit=1000).body["sessions"]

    assert set(made) == {201}
    assert [entry["session"] for entry in listed] == [f"{i:03}" for i in range(20, most + 20)]
    assert tiny.used_nbytes() == most * SESSION_NBYTES
    assert tiny.append("a", tokens(100), tokens(100)).status == 201
    tiny.get("/sessions/020").problem(404, "session-not-found")


def test_where_nothing_fits_nothing_is_made() -> None:
    with running_service("--memory-budget", "1000") as service, Caller(service.url) as caller:
        answers = [caller.put("/sessions/a", {}), caller.append("a", tokens(1), tokens(1))]

        for answer in answers:
            answer.problem(507, "insufficient-storage")
        assert caller.get("/sessions").body["sessions"] == []
        assert caller.used_nbytes() == 0


# 503


def test_callers_are_told_to_come_back_while_the_queue_is_full() -> None:
    body = msgpack.packb({"x": tensor(np.ones((20_000, 64), np.float16))})
    busy: list[Answer] = []
    others: set[int] = set()

    def encode_until_somebody_was_refused(url: str) -> None:
        with Caller(url) as caller:
            for _ in range(500):
                if busy:
                    return
                answer = caller.send("POST", "/encode", body)
                if answer.status == 503:
                    busy.append(answer)
                else:
                    others.add(answer.status)

    with running_service("--queue", "1") as service:
        threads = [threading.Thread(target=encode_until_somebody_was_refused, args=(service.url,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Caller(service.url) as caller:
            afterwards = caller.send("POST", "/encode", body)

    assert busy, "eight callers shared a queue of one and were all served"
    for answer in busy:
        answer.problem(503, "busy")
        assert int(answer.headers["retry-after"]) >= 1
    assert others == {200}
    assert afterwards.status == 200


# 401 and tenants


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with two tenants, whose tokens are `token of ann` and `token of bob`."""
    path: Path = tmp_path_factory.mktemp("tokens") / "tokens"
    digests = [f"{name}:{hashlib.sha256(f'token-of-{name}'.encode()).hexdigest()}" for name in ("ann", "bob")]
    path.write_text("\n".join(["# who may call", "", *digests, ""]), "utf-8")
    with running_service("--token-file", str(path)) as service:
        yield service.url


CALLS = [
    ("POST", "/sessions/hers/kv"),
    ("GET", "/sessions/hers/kv"),
    ("PUT", "/sessions/hers"),
    ("GET", "/sessions/hers"),
    ("DELETE", "/sessions/hers"),
    ("GET", "/sessions"),
    ("POST", "/encode"),
    ("POST", "/decode"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/nowhere"),
]
CREDENTIALS = ["", "Bearer", "Bearer wrong", "Basic token-of-ann", "token-of-ann", "Bearer token-of-ann2"]


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_nobody_gets_in_without_a_valid_token(guarded: str, method: str, path: str) -> None:
    with Caller(guarded, "token-of-ann") as ann, Caller(guarded) as stranger:
        ann.append("hers", K, V, position=0)
        before = ann.snapshot("hers")

        answers = [stranger.send(method, path, PACKED, authorization=credentials) for credentials in CREDENTIALS]
        answers.append(stranger.send(method, path, PACKED))

        for answer in answers:
            answer.problem(401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert ann.snapshot("hers") == before


def test_a_token_is_checked_before_the_body_is_read(guarded: str) -> None:
    head = f"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Type: {MSGPACK}\r\nContent-Length: 1000000\r\n\r\n"

    with connect(guarded) as connection:
        connection.sendall(head.encode())
        line = status_line(connection)

    assert line.startswith(b"HTTP/1.1 401 ")


def test_probes_need_no_token(guarded: str) -> None:
    with Caller(guarded) as stranger:
        answers = [stranger.get("/healthz"), stranger.get("/readyz")]

    assert [answer.status for answer in answers] == [200, 200]


def test_a_session_of_another_tenant_does_not_exist(guarded: str) -> None:
    with Caller(guarded, "token-of-ann") as ann, Caller(guarded, "token-of-bob") as bob:
        ann.append("secret", K, V)
        before = ann.snapshot("secret")

        answers = [bob.get("/sessions/secret"), bob.get("/sessions/secret/kv"), bob.delete("/sessions/secret")]
        made = bob.append("secret", V, K)

        for answer in answers:
            answer.problem(404, "session-not-found")
        assert made.status == 201, "the same name is free for another tenant"
        assert made.body["k"] == stream(V, Codec())
        assert ann.snapshot("secret") == before


def test_a_list_shows_only_ones_own_sessions(guarded: str) -> None:
    with Caller(guarded, "token-of-ann") as ann, Caller(guarded, "token-of-bob") as bob:
        ann.append("list-of-ann", K, V)
        bob.append("list-of-bob", K, V)

        lists = [caller.get("/sessions", prefix="list-").body["sessions"] for caller in (ann, bob)]

    assert [[entry["session"] for entry in found] for found in lists] == [["list-of-ann"], ["list-of-bob"]]


# 422: session ids

BAD_IDS = {
    "a space": "a%20b",
    "a slash": "a%2Fb",
    "a slash before kv": "a%2Fkv",
    "a backslash": "a%5Cb",
    "an umlaut": "%C3%BC",
    "a percent sign": "a%25b",
    "a question mark": "a%3Fb",
    "an exclamation mark": "a!b",
    "a zero byte": "a%00",
    "a line end": "a%0A",
    "bytes that are no text": "%FF%FE",
    "a letter too many": "x" * 129,
    "one dot and no more": "%2E",
    "two dots and no more": "%2E%2E",
}


@pytest.mark.parametrize("bad", BAD_IDS.values(), ids=BAD_IDS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/sessions/{}/kv"),
        ("GET", "/sessions/{}/kv"),
        ("PUT", "/sessions/{}"),
        ("GET", "/sessions/{}"),
        ("DELETE", "/sessions/{}"),
    ],
)
def test_a_session_id_is_refused_that_has(caller: Caller, method: str, path: str, bad: str) -> None:
    body = PACKED if method == "POST" else b""

    answer = caller.send(method, path.format(bad), body)

    assert_names_field(answer, "id")


def test_an_id_may_have_every_allowed_sign_and_128_of_them(caller: Caller) -> None:
    signs = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-"
    ids = [signs, uuid4().hex * 4, f"z{uuid4().hex}:a.b_c-d", "...", ".a", "..a"]

    statuses = [caller.append(id_, K, V).status for id_ in ids]

    assert statuses == [201] * len(ids)
    assert [caller.info(id_)["session"] for id_ in ids] == ids


# Requests no HTTP library would send


@pytest.mark.parametrize("dots", [".", ".."])
@pytest.mark.parametrize("kind", [MSGPACK, f"{MSGPACK}; v=1"], ids=["plain", "with a parameter"])
def test_an_append_to_nothing_but_dots_is_refused(server: RunningService, dots: str, kind: str) -> None:
    head = (
        f"POST /sessions/{dots}/kv HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(PACKED)}\r\n\r\n"
    )

    with connect(server.url) as connection:
        connection.sendall(head.encode() + PACKED)
        line = status_line(connection)

    assert line == b"HTTP/1.1 422 Unprocessable Entity"


@pytest.mark.parametrize("length", ["-1", "ten", "1e3", "+5", "0x10", "9" * 5000, ""])
def test_a_content_length_that_is_no_number_is_refused(server: RunningService, caller: Caller, length: str) -> None:
    head = f"POST /encode HTTP/1.1\r\nHost: x\r\nContent-Type: {MSGPACK}\r\nContent-Length: {length}\r\n\r\n"

    with connect(server.url) as connection:
        connection.sendall(head.encode() + PACKED)
        connection.shutdown(socket.SHUT_WR)
        line = status_line(connection)

    assert line.split(b" ")[1:2] in ([b"400"], [b"413"])
    assert caller.get("/healthz").status == 200


def test_every_problem_kind_has_a_title_of_its_own(caller: Caller, kept: str) -> None:
    answers = [
        caller.send("POST", "/encode", b""),
        caller.get("/nowhere"),
        caller.get("/sessions/never-made"),
        caller.send("PATCH", "/sessions"),
        caller.append(kept, V, K, position=0),
        caller.append(kept, K[:, :1], V[:, :1]),
        caller.append(kept, K, V, codec={"bits": 2}),
        caller.put(f"/sessions/{kept}", {"layers": 1}),
        caller.send("POST", "/encode", PACKED, "text/plain"),
        caller.post("/encode", {}),
        caller.append(kept, K * np.float16(np.nan), V),
    ]

    kinds = {(answer.body["type"], answer.body["title"]) for answer in answers}

    assert len({kind for kind, _ in kinds}) == len({title for _, title in kinds}) == len(answers)
