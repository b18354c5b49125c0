"""Invalid bodies and queries are rejected by field, and nothing changes."""

from typing import Any

import numpy as np
import pytest

from support.assertions import VALID, K, V, assert_names_field
from support.contract import JSON, MSGPACK, Caller, Json, append_body, tensor

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


@pytest.mark.parametrize(("body", "field"), INVALID_APPENDS.values(), ids=INVALID_APPENDS)
def test_append_is_rejected(caller: Caller, kept: str, body: Any, field: str) -> None:
    before = caller.snapshot(kept)

    response = caller.post(f"/sessions/{kept}/kv", body)

    assert_names_field(response, field)
    assert caller.snapshot(kept) == before


def test_rejected_append_creates_no_session(caller: Caller, session: str) -> None:
    bodies = [body for body, _ in INVALID_APPENDS.values()]

    responses = [caller.post(f"/sessions/{session}/kv", body) for body in bodies]

    assert {response.status for response in responses} == {422}
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
    "has a window beyond all tokens": ({"window": (1 << 48) + 1}, "window"),
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
def test_session_is_rejected(caller: Caller, session: str, body: Any, field: str) -> None:
    response = caller.put(f"/sessions/{session}", body)

    assert_names_field(response, field)
    caller.get(f"/sessions/{session}").problem(404, "session-not-found")
    assert caller.get("/sessions").status == 200


def test_number_too_large_for_msgpack_is_rejected(caller: Caller, session: str) -> None:
    """A msgpack response could not encode it."""
    body = b'{"window": %d}' % (1 << 64)

    response = caller.send("PUT", f"/sessions/{session}", body, JSON, accept=MSGPACK)

    assert_names_field(response, "window")


def test_largest_window_is_returned_in_every_format(caller: Caller, session: str) -> None:
    body = b'{"window": %d}' % (1 << 48)

    made = caller.send("PUT", f"/sessions/{session}", body, JSON, accept=MSGPACK)

    assert made.status == 201
    assert made.body["window"] == caller.info(session)["window"] == 1 << 48


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
def test_codec_call_is_rejected(caller: Caller, path: str, body: Any, field: str) -> None:
    response = caller.post(path, body)

    assert_names_field(response, field)


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
def test_read_is_rejected(caller: Caller, kept: str, query: str) -> None:
    before = caller.snapshot(kept)

    response = caller.get(f"/sessions/{kept}/kv?{query}")

    assert_names_field(response, INVALID_QUERIES[query])
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=1001", "limit=many"])
def test_list_is_rejected(caller: Caller, query: str) -> None:
    response = caller.get(f"/sessions?{query}")

    assert_names_field(response, "limit")
