"""Reads of token ranges in every form, over HTTP."""

from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest

from hadakv_kernels import Codec
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from support.contract import Caller, Json, array, stream, tensor
from support.inputs.arrays import CODECS, DEFAULT, FORMS, decoded, pair


@pytest.mark.parametrize("length", [255, 256, 257, 512, 513])
def test_appends_of_any_size_equal_one_append(caller: Caller, session: str, length: int) -> None:
    k, v = pair(2, 2, length)
    cuts = np.unique(np.random.default_rng(length).integers(0, length + 1, 12))

    for a, b in pairwise([0, *map(int, cuts), length]):
        assert caller.append(session, k[:, :, a:b], v[:, :, a:b]).status in (200, 201)
    caller.append(f"{session}.one", k, v)

    chunked, one_shot = caller.content(session), caller.content(f"{session}.one")
    assert chunked == one_shot
    assert one_shot["k"] == stream(k, DEFAULT)
    assert caller.info(session)["nbytes"] == caller.info(f"{session}.one")["nbytes"]


@pytest.mark.parametrize("first", [1, 100, 255, 256, 257])
def test_appends_of_one_token_equal_one_append(caller: Caller, session: str, first: int) -> None:
    k, v = pair(1, 1, 300)

    caller.append(session, k[:, :, :first], v[:, :, :first])
    for i in range(first, 300):
        caller.append(session, k[:, :, i : i + 1], v[:, :, i : i + 1], position=i)

    held = caller.read(session)
    assert (held["k"], held["v"]) == (stream(k, DEFAULT), stream(v, DEFAULT))


def rows(whole: Json, start: int, stop: int) -> Json:
    return {name: tensor(array(part)[:, :, start:stop]) for name, part in whole.items()}


def test_range_may_start_at_every_offset(caller: Caller, session: str) -> None:
    k, v = pair(1, 2, 600)
    for a, b in pairwise((0, 100, 256, 300, 513, 520, 600)):
        caller.append(session, k[:, :, a:b], v[:, :, a:b])
    whole_k, whole_v = stream(k, DEFAULT), stream(v, DEFAULT)

    for start in range(600):
        held = caller.read(session, start=start, stop=start + 3)
        stop = min(start + 3, 600)
        assert (held["start"], held["stop"], held["length"]) == (start, stop, 600)
        assert held["k"] == rows(whole_k, start, stop)
        assert held["v"] == rows(whole_v, start, stop)


def test_range_may_cross_page_boundaries(caller: Caller, session: str) -> None:
    k, v = pair(2, 1, 2 * PAGE_TOKENS + 40)
    caller.append(session, k[:, :, :200], v[:, :, :200])
    caller.append(session, k[:, :, 200:], v[:, :, 200:])
    whole = stream(v, DEFAULT)
    offsets = (0, 1, 199, 200, 201, 255, 256, 257, 511, 512, 513, 552)

    for start, stop in combinations_with_replacement(offsets, 2):
        assert caller.read(session, start=start, stop=stop)["v"] == rows(whole, start, stop)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.kind}-{codec.bits}-{codec.layout}")
def test_range_may_be_read_decoded(caller: Caller, session: str, codec: Codec, form: str) -> None:
    k, v = pair(2, 2, 300, 128)
    caller.append(session, k, v, codec={"k": codec.to_mapping(), "v": {}})

    held = caller.read(session, form=form, start=250, stop=270, layers="1:2")

    assert held["k"] == decoded(k[1:2, :, 250:270], codec, form)
    assert held["v"] == decoded(v[1:2, :, 250:270], DEFAULT, form)


@pytest.mark.parametrize("form", ["packed", *FORMS])
def test_empty_range_has_tensors_of_no_tokens(caller: Caller, session: str, form: str) -> None:
    caller.append(session, *pair(3, 2, 5, 512))

    held = caller.read(session, form=form, start=4, stop=4)

    shapes = {name: part["shape"] for name, part in held["k"].items()}
    packed = {"packed": [3, 2, 0, 256], "norms": [3, 2, 0, 2]}
    assert (held["start"], held["stop"], held["length"]) == (4, 4, 5)
    assert shapes == (packed if form == "packed" else {"values": [3, 2, 0, 512]})


def test_empty_layer_range_may_be_read(caller: Caller, session: str) -> None:
    caller.append(session, *pair(3, 2, 5))

    held = caller.read(session, layers="2:2")

    assert held["k"]["packed"]["shape"] == [0, 2, 0, 32]


def test_stop_beyond_the_end_is_the_end(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 5)
    caller.append(session, k, v)

    held = caller.read(session, start=3, stop=10**18)

    assert (held["start"], held["stop"], held["length"]) == (3, 5, 5)
    assert held["k"] == stream(k[:, :, 3:], DEFAULT)


def test_session_without_tokens_reads_as_null(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {})

    named = {"session": session, "group": 0, "layers": []}
    assert caller.read(session) == {**named, "start": 0, "stop": 0, "length": 0, "k": None, "v": None}


@pytest.mark.parametrize("layout", ["linear", "ring"])
@pytest.mark.parametrize("form", ["packed", "norms", *FORMS])
def test_read_names_session_group_and_layers(caller: Caller, session: str, form: str, layout: str) -> None:
    caller.put(f"/sessions/{session}", {"window": 4})
    caller.append(session, *pair(3, 1, 5))

    whole = caller.read(session, form=form, layout=layout)
    part = caller.read(session, form=form, layout=layout, layers="1:3")
    none = caller.read(session, form=form, layout=layout, layers="1:1")

    names = ("session", "group", "layers", "start", "stop", "length", "k", "v")
    assert tuple(whole) == tuple(part) == tuple(none) == names
    assert [whole[name] for name in names[:-2]] == [session, 0, [0, 1, 2], 1, 5, 5]
    assert [part[name] for name in names[:-2]] == [session, 0, [1, 2], 1, 5, 5]
    assert (none["session"], none["layers"]) == (session, [])


@pytest.mark.parametrize("head_dim", [64, 512])
def test_norms_may_be_read_alone(caller: Caller, session: str, head_dim: int) -> None:
    caller.append(session, *pair(2, 2, 300, head_dim), codec={"k": {"bits": 3}, "v": {"kind": "float16"}})
    packed = caller.read(session, start=250, stop=270)

    held = caller.read(session, form="norms", start=250, stop=270)

    assert held["k"] == {"norms": packed["k"]["norms"]}
    assert held["v"] == {"norms": {"dtype": "float32", "shape": [2, 2, 20, 0], "data": b""}}


def test_norms_of_a_huge_ring_are_rejected_early(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"window": 2**48, "codec": {"kind": "float16"}})
    caller.append(session, *pair(1, 1, 3))

    rejected = caller.get(f"/sessions/{session}/kv", layout="ring", form="norms")

    rejected.problem(422, "response-too-large")


def test_read_bytes_do_not_change_with_later_appends(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 700)
    caller.append(session, k[:, :, :250], v[:, :, :250])
    before = caller.get(f"/sessions/{session}/kv", stop=250).body

    for start in range(250, 700, 50):
        caller.append(session, k[:, :, start : start + 50], v[:, :, start : start + 50])

    after = caller.get(f"/sessions/{session}/kv", stop=250).body
    assert (after["k"], after["v"]) == (before["k"], before["v"])
