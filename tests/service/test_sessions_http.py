"""Making, filling, reading, listing and deleting sessions, through a real server."""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import combinations_with_replacement, pairwise
from typing import Any

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray

from contract import JSON, MSGPACK, Caller, Json, append_body, array, stream, tensor
from hadakv_kernels import DTYPES, HEAD_DIMS, Codec, reference
from hadakv_service.pages import PAGE_TOKENS
from hadakv_service.spawn import RunningService, running_service
from hadakv_service.store import PAGE_NBYTES, RUN_NBYTES, SESSION_NBYTES

TTL_SECONDS = 3600.0

RNG = np.random.default_rng(3)
DEFAULT = Codec()
CODECS = [
    Codec(),
    Codec(bits=2, norm="unbiased"),
    Codec(bits=3, codebook="lloyd-max"),
    Codec(bits=5, layout="byte"),
    Codec(bits=8, rotation="none"),
    Codec(kind="float16"),
]
FORMS = ("float32", "float16", "bfloat16", "rotated")


def values(layers: int, heads: int, tokens: int, head_dim: int = 64, *, dtype: str = "float16") -> NDArray[Any]:
    return RNG.standard_normal((layers, heads, tokens, head_dim)).astype(DTYPES[dtype])


def pair(
    layers: int, heads: int, tokens: int, head_dim: int = 64, *, dtype: str = "float16"
) -> tuple[NDArray[Any], NDArray[Any]]:
    k, v = (values(layers, heads, tokens, head_dim, dtype=dtype) for _ in "kv")
    return k, v


def decoded(x: NDArray[Any], codec: Codec, form: str) -> Json:
    """What reading an array back in some form must give."""
    spec = codec.at(x.shape[-1])
    dtype, inverse = ("float32", False) if form == "rotated" else (form, True)
    return {"values": tensor(reference.decode(reference.encode(x, spec), spec, dtype, inverse=inverse))}


def row_nbytes(codec: Codec, head_dim: int) -> int:
    spec = codec.at(head_dim)
    return spec.row_bytes + 4 * spec.norms


@pytest.fixture(scope="module")
def alone() -> Iterator[Caller]:
    """A client of a service whose bytes nobody else counts, where sessions live for an hour."""
    with running_service("--ttl-seconds", str(TTL_SECONDS)) as service, Caller(service.url) as caller:
        yield caller


# Appending


def test_the_first_append_makes_the_session_and_the_next_goes_behind_it(caller: Caller, session: str) -> None:
    k, v = pair(3, 2, 7)

    first = caller.append(session, k[:, :, :5], v[:, :, :5])
    second = caller.append(session, k[:, :, 5:], v[:, :, 5:])

    assert (first.status, second.status) == (201, 200)
    assert first.headers["content-type"] == MSGPACK
    assert first.body == {
        "session": session,
        "position": 0,
        "tokens": 5,
        "length": 5,
        "k": stream(k[:, :, :5], DEFAULT),
        "v": stream(v[:, :, :5], DEFAULT),
    }
    assert (second.body["position"], second.body["tokens"], second.body["length"]) == (5, 2, 7)
    assert second.body["k"] == stream(k[:, :, 5:], DEFAULT)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.kind}-{codec.bits}-{codec.layout}")
def test_every_dtype_and_head_dim_gives_the_references_bytes(
    caller: Caller, session: str, codec: Codec, dtype: str, head_dim: int
) -> None:
    k, v = pair(2, 2, 3, head_dim, dtype=dtype)

    answer = caller.append(session, k, v, codec=codec.to_mapping())

    assert answer.body["k"] == stream(k, codec)
    assert answer.body["v"] == stream(v, codec)
    assert caller.info(session)["nbytes"] == 2 * 12 * row_nbytes(codec, head_dim)


def test_three_axes_are_one_layer(caller: Caller, session: str) -> None:
    k, v = pair(1, 2, 4)

    answer = caller.append(session, k[0], v[0], layer=2)

    assert answer.body["k"] == stream(k, DEFAULT)
    assert [layer["length"] for layer in caller.info(session)["layers"]] == [0, 0, 4]


def test_each_stream_may_have_a_codec_of_its_own(caller: Caller, session: str) -> None:
    k, v = pair(2, 2, 300)
    k_codec, v_codec = Codec(kind="float16"), Codec(bits=3, norm="unbiased")
    asked = {"k": {"kind": "float16"}, "v": {"bits": 3, "norm": "unbiased"}}

    answer = caller.append(session, k, v, codec=asked)
    again = caller.append(session, k, v, codec=asked)

    info = caller.info(session)
    assert (answer.status, again.status) == (201, 200)
    assert answer.body["k"] == {"values": tensor(k)}
    assert answer.body["v"] == stream(v, v_codec)
    assert info["codec"] == {"k": k_codec.to_mapping(), "v": v_codec.to_mapping()}
    assert info["nbytes"] == 2 * 2 * 600 * (row_nbytes(k_codec, 64) + row_nbytes(v_codec, 64))
    assert caller.read(session, stop=300)["k"] == {"values": tensor(k)}


def test_one_codec_for_k_alone_leaves_v_the_default(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 2)

    answer = caller.append(session, k, v, codec={"k": {"bits": 8}})

    assert answer.body["k"] == stream(k, Codec(bits=8))
    assert answer.body["v"] == stream(v, DEFAULT)


def test_an_append_of_no_tokens_changes_nothing(caller: Caller, session: str) -> None:
    k, v = pair(2, 1, 3)
    caller.append(session, k, v)
    before = caller.snapshot(session)

    answer = caller.append(session, k[:, :, :0], v[:, :, :0], position=3)

    assert answer.status == 200
    assert (answer.body["position"], answer.body["tokens"], answer.body["length"]) == (3, 0, 3)
    assert answer.body["k"] == stream(k[:, :, :0], DEFAULT)
    assert caller.snapshot(session) == before


def test_a_minimal_answer_has_no_tensors(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 2)

    answer = caller.post(f"/sessions/{session}/kv", append_body(k, v), prefer="respond-async, return=minimal")

    assert answer.status == 201
    assert answer.body == {"session": session, "position": 0, "tokens": 2, "length": 2}
    assert caller.read(session)["k"] == stream(k, DEFAULT)


@pytest.mark.parametrize("prefer", ["return=representation", "wait=5"])
def test_other_preferences_leave_the_answer_whole(caller: Caller, session: str, prefer: str) -> None:
    k, v = pair(1, 1, 2)

    answer = caller.post(f"/sessions/{session}/kv", append_body(k, v), prefer=prefer)

    assert answer.body["v"] == stream(v, DEFAULT)


def test_a_chunked_body_is_read_like_any_other(caller: Caller, session: str) -> None:
    k, v = pair(2, 2, 400)
    body = msgpack.packb(append_body(k, v))
    pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))

    response = caller.http.post(f"/sessions/{session}/kv", content=pieces, headers={"content-type": MSGPACK})

    assert response.status_code == 201
    assert caller.read(session)["v"] == stream(v, DEFAULT)


@pytest.mark.parametrize("codec", [DEFAULT, Codec(kind="float16")], ids=lambda codec: codec.kind)
def test_large_bodies_do_not_get_into_each_other(caller: Caller, session: str, codec: Codec) -> None:
    pairs = [pair(1, 2, tokens) for tokens in (900, 300, 1200, 700, 310)]

    answers = [caller.append(session, k, v, codec=codec.to_mapping()) for k, v in pairs]

    held = caller.read(session)
    assert [answer.body["k"] for answer in answers] == [stream(k, codec) for k, _ in pairs]
    assert held["k"] == stream(np.concatenate([k for k, _ in pairs], axis=2), codec)
    assert held["v"] == stream(np.concatenate([v for _, v in pairs], axis=2), codec)


# Layer by layer


def test_layers_may_be_filled_one_by_one(caller: Caller, session: str) -> None:
    k, v = pair(4, 2, 300)

    statuses = [caller.append(session, k[layer], v[layer], layer=layer, position=0).status for layer in (0, 1, 2, 3)]

    assert statuses == [201, 200, 200, 200]
    assert caller.read(session)["k"] == stream(k, DEFAULT)
    assert caller.info(session)["length"] == 300


def test_layers_may_have_gaps_and_lengths_of_their_own(caller: Caller, session: str) -> None:
    k, v = pair(6, 1, 9)

    caller.append(session, k[4:6, :, :3], v[4:6, :, :3], layer=4)
    caller.append(session, k[1, :, :9], v[1, :, :9], layer=1)
    caller.append(session, k[0:2, :, :0], v[0:2, :, :0], layer=2)
    caller.append(session, k[5, :, 3:5], v[5, :, 3:5], layer=5)

    info = caller.info(session)
    assert [layer["length"] for layer in info["layers"]] == [0, 9, 0, 0, 3, 5]
    assert info["length"] == 0
    assert info["nbytes"] == (9 + 3 + 5) * 2 * row_nbytes(DEFAULT, 64)
    assert caller.read(session, layers="1:2")["k"] == stream(k[1:2], DEFAULT)
    assert caller.read(session, layers="5:6")["v"] == stream(v[5:6, :, :5], DEFAULT)
    both = caller.read(session, layers="4:6")
    assert (both["stop"], both["length"]) == (3, 3)
    assert both["k"] == stream(k[4:6, :, :3], DEFAULT)


def test_layers_filled_together_may_part_and_meet_again(caller: Caller, session: str) -> None:
    k, v = pair(4, 1, 600)

    caller.append(session, k[:, :, :250], v[:, :, :250])
    caller.append(session, k[1:3, :, 250:260], v[1:3, :, 250:260], layer=1)
    for layer in (3, 0):
        caller.append(session, k[layer, :, 250:260], v[layer, :, 250:260], layer=layer)
    answer = caller.append(session, k[:, :, 260:], v[:, :, 260:], position=260)

    assert answer.status == 200
    assert caller.read(session)["k"] == stream(k, DEFAULT)
    assert caller.read(session, layers="2:4", start=240, stop=270)["v"] == stream(v[2:4, :, 240:270], DEFAULT)


# Reading


@pytest.mark.parametrize("length", [255, 256, 257, 512, 513])
def test_chunks_of_any_size_equal_one_shot(caller: Caller, session: str, length: int) -> None:
    k, v = pair(2, 2, length)
    cuts = np.unique(np.random.default_rng(length).integers(0, length + 1, 12))

    for a, b in pairwise([0, *map(int, cuts), length]):
        assert caller.append(session, k[:, :, a:b], v[:, :, a:b]).status in (200, 201)
    caller.append(f"{session}.one", k, v)

    chunked, one_shot = caller.get(f"/sessions/{session}/kv"), caller.get(f"/sessions/{session}.one/kv")
    assert chunked.content == one_shot.content
    assert one_shot.body["k"] == stream(k, DEFAULT)
    assert caller.info(session)["nbytes"] == caller.info(f"{session}.one")["nbytes"]


@pytest.mark.parametrize("first", [1, 100, 255, 256, 257])
def test_one_token_at_a_time_equals_one_shot(caller: Caller, session: str, first: int) -> None:
    k, v = pair(1, 1, 300)

    caller.append(session, k[:, :, :first], v[:, :, :first])
    for i in range(first, 300):
        caller.append(session, k[:, :, i : i + 1], v[:, :, i : i + 1], position=i)

    held = caller.read(session)
    assert (held["k"], held["v"]) == (stream(k, DEFAULT), stream(v, DEFAULT))


def rows(whole: Json, start: int, stop: int) -> Json:
    return {name: tensor(array(part)[:, :, start:stop]) for name, part in whole.items()}


def test_a_range_may_start_at_every_offset(caller: Caller, session: str) -> None:
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


def test_a_range_may_lie_anyhow_to_the_borders_of_pages(caller: Caller, session: str) -> None:
    k, v = pair(2, 1, 2 * PAGE_TOKENS + 40)
    caller.append(session, k[:, :, :200], v[:, :, :200])
    caller.append(session, k[:, :, 200:], v[:, :, 200:])
    whole = stream(v, DEFAULT)
    offsets = (0, 1, 199, 200, 201, 255, 256, 257, 511, 512, 513, 552)

    for start, stop in combinations_with_replacement(offsets, 2):
        assert caller.read(session, start=start, stop=stop)["v"] == rows(whole, start, stop)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.kind}-{codec.bits}-{codec.layout}")
def test_a_range_may_be_read_decoded(caller: Caller, session: str, codec: Codec, form: str) -> None:
    k, v = pair(2, 2, 300, 128)
    caller.append(session, k, v, codec={"k": codec.to_mapping(), "v": {}})

    held = caller.read(session, form=form, start=250, stop=270, layers="1:2")

    assert held["k"] == decoded(k[1:2, :, 250:270], codec, form)
    assert held["v"] == decoded(v[1:2, :, 250:270], DEFAULT, form)


@pytest.mark.parametrize("form", ["packed", *FORMS])
def test_an_empty_range_has_tensors_of_no_tokens(caller: Caller, session: str, form: str) -> None:
    caller.append(session, *pair(3, 2, 5, 512))

    held = caller.read(session, form=form, start=4, stop=4)

    shapes = {name: part["shape"] for name, part in held["k"].items()}
    packed = {"packed": [3, 2, 0, 256], "norms": [3, 2, 0, 2]}
    assert (held["start"], held["stop"], held["length"]) == (4, 4, 5)
    assert shapes == (packed if form == "packed" else {"values": [3, 2, 0, 512]})


def test_no_layers_may_be_read(caller: Caller, session: str) -> None:
    caller.append(session, *pair(3, 2, 5))

    held = caller.read(session, layers="2:2")

    assert held["k"]["packed"]["shape"] == [0, 2, 0, 32]


def test_a_stop_beyond_the_end_is_the_end(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 5)
    caller.append(session, k, v)

    held = caller.read(session, start=3, stop=10**18)

    assert (held["start"], held["stop"], held["length"]) == (3, 5, 5)
    assert held["k"] == stream(k[:, :, 3:], DEFAULT)


def test_a_session_without_tokens_reads_as_nothing(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {})

    assert caller.read(session) == {"start": 0, "stop": 0, "length": 0, "k": None, "v": None}


def test_what_was_read_stays_as_it_was_while_more_is_appended(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 700)
    caller.append(session, k[:, :, :250], v[:, :, :250])
    before = caller.get(f"/sessions/{session}/kv", stop=250).body

    for start in range(250, 700, 50):
        caller.append(session, k[:, :, start : start + 50], v[:, :, start : start + 50])

    after = caller.get(f"/sessions/{session}/kv", stop=250).body
    assert (after["k"], after["v"]) == (before["k"], before["v"])


# PUT


def test_a_session_may_be_made_before_its_first_append(caller: Caller, session: str) -> None:
    asked = {"codec": {"bits": 6}, "layers": 4, "kv_heads": 2, "head_dim": 128, "window": 100, "ttl_seconds": 3600.0}
    k, v = pair(4, 2, 3, 128)

    made = caller.put(f"/sessions/{session}", asked)
    again = caller.put(f"/sessions/{session}", asked)
    appended = caller.append(session, k, v)
    afterwards = caller.put(f"/sessions/{session}", asked)

    assert [answer.status for answer in (made, again, appended, afterwards)] == [201, 200, 200, 200]
    info = made.body
    assert info["codec"]["k"]["bits"] == info["codec"]["v"]["bits"] == 6
    assert info["declared_layers"] == 4
    assert {name: info[name] for name in ("kv_heads", "head_dim", "window", "ttl_seconds")} == {
        "kv_heads": 2,
        "head_dim": 128,
        "window": 100,
        "ttl_seconds": 3600.0,
    }
    assert (info["layers"], info["length"], info["nbytes"]) == ([], 0, 0)
    assert appended.body["k"] == stream(k, Codec(bits=6))


def test_making_a_session_without_saying_anything_leaves_all_open(caller: Caller, session: str) -> None:
    made = caller.send("PUT", f"/sessions/{session}")

    info = made.body
    open_fields = ("codec", "kv_heads", "head_dim", "declared_layers", "window", "ttl_seconds", "expires")
    assert made.status == 201
    assert [info[name] for name in open_fields] == [None] * 7
    assert caller.append(session, *pair(1, 3, 1, 256), codec={"bits": 2}).status == 200


def test_what_was_left_open_may_be_said_later(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"layers": 2})

    statuses = [
        caller.put(f"/sessions/{session}", body).status
        for body in ({"head_dim": 64}, {"kv_heads": 1}, {"codec": {"bits": 3}}, {})
    ]
    k, v = pair(2, 1, 2)
    answer = caller.append(session, k, v)

    assert statuses == [200] * 4
    assert answer.body["v"] == stream(v, Codec(bits=3))


def test_a_put_of_a_filled_session_that_agrees_keeps_its_tokens(caller: Caller, session: str) -> None:
    caller.append(session, *pair(2, 1, 5))
    before = caller.read(session)

    answer = caller.put(f"/sessions/{session}", {"codec": {"bits": 4}, "kv_heads": 1, "head_dim": 64, "layers": 2})

    assert (answer.status, answer.body["length"], answer.body["declared_layers"]) == (200, 5, 2)
    assert caller.read(session) == before


# Description, list, deletion


def test_the_description_counts_what_was_sent(caller: Caller, session: str) -> None:
    started = datetime.now(UTC)
    answers = [caller.append(session, *pair(3, 2, tokens, 256)) for tokens in (100, 200, 1)]
    sent = sum(len(part["data"]) for answer in answers for name in "kv" for part in answer.body[name].values())

    info = caller.info(session)

    moments = [datetime.fromisoformat(info[name]) for name in ("created", "last_used")]
    assert info["nbytes"] == sent
    assert info["raw_nbytes"] == 2 * 3 * 2 * 301 * 256 * 2
    assert info["layers"] == [{"layer": layer, "start": 0, "length": 301} for layer in range(3)]
    assert (info["session"], info["length"], info["tier"]) == (session, 301, "memory")
    assert (info["kv_heads"], info["head_dim"], info["declared_layers"]) == (2, 256, None)
    assert started - timedelta(seconds=1) <= moments[0] <= moments[1] <= datetime.now(UTC) + timedelta(seconds=1)


def test_appends_and_reads_count_as_use_and_looking_does_not(caller: Caller, session: str) -> None:
    def last_used() -> datetime:
        return datetime.fromisoformat(caller.info(session)["last_used"])

    caller.append(session, *pair(1, 1, 1))
    made = last_used()
    caller.get("/sessions", prefix=session)
    looked = last_used()
    caller.read(session)
    read = last_used()
    caller.append(session, *pair(1, 1, 1))
    appended = last_used()

    assert made == looked < read < appended


def test_metadata_speaks_msgpack_where_asked_and_json_else(caller: Caller, session: str) -> None:
    caller.append(session, *pair(1, 1, 1))

    for path in (f"/sessions/{session}", "/sessions", "/healthz", "/readyz"):
        in_json, in_msgpack = caller.get(path), caller.get(path, accept=MSGPACK)
        assert in_json.headers["content-type"] == JSON
        assert in_msgpack.headers["content-type"] == MSGPACK
        assert in_msgpack.body == in_json.body


def test_a_session_may_be_made_by_json_or_msgpack(caller: Caller, session: str) -> None:
    body = {"layers": 2, "codec": {"bits": 5}}

    by_json = caller.send("PUT", f"/sessions/{session}.json", json.dumps(body).encode(), JSON, accept=MSGPACK)
    by_msgpack = caller.put(f"/sessions/{session}.msgpack", body)

    assert (by_json.headers["content-type"], by_msgpack.headers["content-type"]) == (MSGPACK, JSON)
    assert by_json.body["codec"] == by_msgpack.body["codec"] == {name: Codec(bits=5).to_mapping() for name in "kv"}


def test_a_list_has_every_session_of_a_prefix_once_in_order_of_id(caller: Caller, session: str) -> None:
    ids = [f"{session}.{number}" for number in RNG.permutation(230)]
    for id_ in ids:
        caller.put(f"/sessions/{id_}", {})
    caller.put(f"/sessions/other-{session}", {})
    listed: list[str] = []
    sizes: list[int] = []
    page: Json = {"next": ""}

    while page["next"] is not None:
        page = caller.get("/sessions", prefix=f"{session}.", limit=50, after=page["next"]).body
        listed += [entry["session"] for entry in page["sessions"]]
        sizes.append(len(page["sessions"]))

    assert listed == sorted(ids)
    assert sizes == [50, 50, 50, 50, 30]


def test_a_page_that_is_just_full_is_the_last(caller: Caller, session: str) -> None:
    for number in range(3):
        caller.put(f"/sessions/{session}.{number}", {})

    page = caller.get("/sessions", prefix=session, limit=3).body

    assert (len(page["sessions"]), page["next"]) == (3, None)
    assert page["sessions"][1] == caller.info(f"{session}.1")


def test_a_list_nothing_matches_is_empty(caller: Caller, session: str) -> None:
    assert caller.get("/sessions", prefix=session).body == {"sessions": [], "next": None}
    assert caller.get("/sessions", after="~").body == {"sessions": [], "next": None}


def test_deleting_frees_the_bytes_and_the_name(alone: Caller, session: str) -> None:
    k, v = pair(2, 2, 600)
    before = alone.used_nbytes()
    alone.append(session, k, v)
    with_it = alone.used_nbytes()

    deleted = alone.delete(f"/sessions/{session}")

    assert (deleted.status, deleted.content) == (204, b"")
    packed = 2 * 2 * 2 * 600 * row_nbytes(DEFAULT, 64)
    assert with_it - before == packed + SESSION_NBYTES + RUN_NBYTES + 3 * PAGE_NBYTES
    assert alone.used_nbytes() == before
    again = alone.append(session, v[:, :1], k[:, :1], codec={"bits": 8})
    assert again.status == 201
    assert again.body["k"] == stream(v[:, :1], Codec(bits=8))


# Windows


def test_a_window_keeps_the_last_tokens_and_counts_on(caller: Caller, session: str) -> None:
    k, v = pair(2, 1, 1000)
    caller.put(f"/sessions/{session}", {"window": 300})

    for start in range(0, 1000, 40):
        caller.append(session, k[:, :, start : start + 40], v[:, :, start : start + 40], position=start)

    held, info = caller.read(session), caller.info(session)
    assert (held["start"], held["stop"], held["length"]) == (700, 1000, 1000)
    assert held["k"] == stream(k[:, :, 700:], DEFAULT)
    assert info["layers"] == [{"layer": layer, "start": 700, "length": 1000} for layer in range(2)]
    assert info["nbytes"] < (300 + PAGE_TOKENS) * 2 * 2 * row_nbytes(DEFAULT, 64)
    assert caller.read(session, start=990)["v"] == stream(v[:, :, 990:], DEFAULT)


def test_a_window_takes_more_at_once_than_it_keeps(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 900)
    caller.put(f"/sessions/{session}", {"window": 10})

    answer = caller.append(session, k, v)

    assert answer.body["k"] == stream(k, DEFAULT)
    held = caller.read(session)
    assert (held["start"], held["stop"]) == (890, 900)
    assert held["v"] == stream(v[:, :, 890:], DEFAULT)


@pytest.mark.parametrize("codec", [DEFAULT, Codec(kind="float16")], ids=["4 bits", "float16"])
@pytest.mark.parametrize("later", [0, 9], ids=["at once", "while a token is left"])
def test_an_append_larger_than_the_window_can_be_repeated(
    caller: Caller, session: str, codec: Codec, later: int
) -> None:
    k, v = pair(2, 2, 30)
    more = pair(2, 2, later)
    caller.put(f"/sessions/{session}", {"window": 10, "codec": codec.to_mapping()})
    caller.append(session, *pair(2, 2, 300))

    first = caller.append(session, k, v, position=300)
    caller.append(session, *more)
    before = caller.snapshot(session)
    again = caller.append(session, k, v, position=300)

    assert (again.status, again.body) == (200, first.body)
    assert caller.snapshot(session) == before


@pytest.mark.parametrize("at", [20, 29], ids=["the first", "the last"])
@pytest.mark.parametrize("name", ["k", "v"])
def test_an_append_that_differs_within_the_window_is_no_repetition(
    caller: Caller, session: str, name: str, at: int
) -> None:
    tensors = dict(zip("kv", pair(1, 2, 30), strict=True))
    caller.put(f"/sessions/{session}", {"window": 10})
    caller.append(session, **tensors)
    before = caller.snapshot(session)
    tensors[name][0, 1, at] *= -1

    answer = caller.append(session, **tensors, position=0)

    assert answer.problem(409, "position-conflict")["length"] == 30
    assert caller.snapshot(session) == before


def test_an_append_that_wholly_left_the_window_is_told_so(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 30)
    caller.put(f"/sessions/{session}", {"window": 10})
    caller.append(session, k, v)
    caller.append(session, *pair(1, 1, 10))

    problem = caller.append(session, k, v, position=0).problem(409, "position-conflict")

    assert problem["length"] == 40
    assert "before 30, which have left the window" in problem["detail"]


def test_what_left_the_window_cannot_be_read(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"window": 10})
    caller.append(session, *pair(1, 1, 30))

    problem = caller.get(f"/sessions/{session}/kv", start=19).problem(422, "invalid-request")

    assert problem["errors"][0]["field"] == "start"


def test_windowed_sessions_take_no_more_of_the_budget_than_they_hold(alone: Caller, session: str) -> None:
    k, v = pair(1, 1, 5000)
    before = alone.used_nbytes()
    alone.put(f"/sessions/{session}", {"window": 100})

    for start in range(0, 5000, 500):
        alone.append(session, k[:, :, start : start + 500], v[:, :, start : start + 500])

    taken = alone.used_nbytes() - before
    held = alone.info(session)["nbytes"]
    assert held < (100 + PAGE_TOKENS) * 2 * row_nbytes(DEFAULT, 64)
    assert taken == held + SESSION_NBYTES + RUN_NBYTES + PAGE_NBYTES


def test_layers_whose_windows_share_no_token_read_as_nothing(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"window": 10})
    caller.append(session, *pair(1, 1, 100), layer=0)
    caller.append(session, *pair(1, 1, 50), layer=1)

    held = caller.read(session)

    assert held["start"] == held["stop"]
    assert held["k"]["packed"]["shape"] == [2, 1, 0, 32]


# TTL: exactly when is the store's own test; here, that the service tells and obeys


def test_a_ttl_tells_when_the_session_expires(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"ttl_seconds": 100})
    caller.append(session, *pair(1, 1, 1))

    info = caller.info(session)

    lives = datetime.fromisoformat(info["expires"]) - datetime.fromisoformat(info["last_used"])
    assert lives == timedelta(seconds=100)


def test_an_expired_session_is_gone_and_its_name_is_free(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"ttl_seconds": 1e-6})

    answers = [caller.get(f"/sessions/{session}"), caller.delete(f"/sessions/{session}")]
    listed = caller.get("/sessions", prefix=session).body["sessions"]
    made = caller.append(session, *pair(1, 1, 1))

    for answer in answers:
        answer.problem(404, "session-not-found")
    assert listed == []
    assert made.status == 201
    assert caller.info(session)["ttl_seconds"] is None


def test_the_services_ttl_counts_where_a_session_has_none_of_its_own(alone: Caller, session: str) -> None:
    alone.append(f"{session}.default", *pair(1, 1, 1))
    alone.put(f"/sessions/{session}.open", {})
    alone.put(f"/sessions/{session}.own", {"ttl_seconds": 60})

    ttls = [alone.info(f"{session}.{name}")["ttl_seconds"] for name in ("default", "open", "own")]

    assert ttls == [TTL_SECONDS, TTL_SECONDS, 60.0]


# The codec alone


@pytest.mark.parametrize("lead", [(), (1,), (5,), (0,), (2, 3), (2, 0, 3), (1, 2, 3, 1)], ids=str)
@pytest.mark.parametrize("codec", [Codec(), Codec(bits=3), Codec(kind="float16")], ids=lambda c: f"{c.kind}-{c.bits}")
def test_encode_and_decode_keep_the_leading_axes(caller: Caller, codec: Codec, lead: tuple[int, ...]) -> None:
    x = RNG.standard_normal((*lead, 512)).astype(np.float32)
    named = {"codec": codec.to_mapping()}

    packed = caller.post("/encode", {"x": tensor(x), **named})
    unpacked = caller.post("/decode", {**packed.body, **named, "head_dim": 512})

    assert packed.body == stream(x, codec)
    assert unpacked.body == decoded(x, codec, "float32")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.kind}-{codec.bits}-{codec.layout}")
def test_decode_gives_every_form(caller: Caller, codec: Codec, form: str) -> None:
    x = values(1, 2, 3, 128, dtype="bfloat16")
    named = {"codec": codec.to_mapping(), "head_dim": 128}

    answer = caller.post("/decode", {**stream(x, codec), **named, "form": form})

    assert answer.body == decoded(x, codec, form)


@pytest.mark.parametrize("rows_of_x", [0, 1, 2000])
def test_encode_tells_what_it_saw_on_the_way_when_asked(caller: Caller, rows_of_x: int) -> None:
    x = values(1, 1, rows_of_x, 512)
    seen = reference.diagnose(x, DEFAULT.at(512))

    answer = caller.post("/encode", {"x": tensor(x), "diagnostics": True})

    assert answer.body == stream(x, DEFAULT) | {"scaled": tensor(seen.scaled), "rms": tensor(seen.rms)}


def test_encode_and_decode_leave_no_session(caller: Caller) -> None:
    before = caller.get("/readyz").body["sessions"]

    caller.post("/encode", {"x": tensor(values(1, 1, 9))})

    assert caller.get("/readyz").body["sessions"] == before


def test_what_one_append_answered_decodes_elsewhere(caller: Caller, session: str) -> None:
    k, v = pair(2, 2, 5, 256)
    appended = caller.append(session, k, v, codec={"bits": 6}).body

    answer = caller.post("/decode", {**appended["v"], "codec": {"bits": 6}, "head_dim": 256})

    assert answer.body == {"values": caller.read(session, form="float32")["v"]["values"]}


# Probes


def test_the_probes_tell_what_runs(server: RunningService, caller: Caller) -> None:
    health, ready = caller.get("/healthz").body, caller.get("/readyz").body

    assert health["status"] == "ok"
    assert (ready["status"], ready["backend"], ready["version"]) == ("ready", "cpu", health["version"])
    assert ready["detail"] in server.startup_line
    assert ready["budget_nbytes"] == 1 << 30
    assert 0 <= ready["used_nbytes"] <= ready["budget_nbytes"]


# The OpenAPI document


@pytest.fixture(scope="module")
def document(caller: Caller) -> Json:
    found: Json = caller.get("/openapi.json").body
    return found


def operations(document: Json) -> dict[tuple[str, str], Json]:
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in ("get", "put", "post", "delete", "patch")
    }


def references(part: Any) -> set[str]:
    """Every `$ref` in a document."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    own = {part["$ref"]} if isinstance(part, dict) and isinstance(part.get("$ref"), str) else set()
    return own.union(*map(references, inner))


def test_the_document_has_every_call(document: Json) -> None:
    assert set(operations(document)) == {
        ("POST", "/sessions/{id}/kv"),
        ("GET", "/sessions/{id}/kv"),
        ("PUT", "/sessions/{id}"),
        ("GET", "/sessions/{id}"),
        ("DELETE", "/sessions/{id}"),
        ("GET", "/sessions"),
        ("POST", "/encode"),
        ("POST", "/decode"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
    }


def test_the_document_is_whole(document: Json) -> None:
    found = operations(document)
    ids = [operation["operationId"] for operation in found.values()]

    assert document["openapi"].startswith("3.")
    assert len(set(ids)) == len(ids)
    for (_, path), operation in found.items():
        in_path = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert in_path == ({"id"} if "{id}" in path else set())
        assert operation["summary"]
        assert all(response["description"] for response in operation["responses"].values())
    for reference_ in references(document):
        part = document
        for step in reference_.removeprefix("#/").split("/"):
            part = part[step]


def test_the_document_tells_of_every_problem_a_call_may_answer(document: Json) -> None:
    found = operations(document)
    told = {call: {int(status) for status in operation["responses"]} for call, operation in found.items()}

    assert told["POST", "/sessions/{id}/kv"] == {200, 201, 400, 401, 409, 413, 415, 422, 503, 507}
    assert told["GET", "/sessions/{id}/kv"] >= {200, 401, 404, 422, 503}
    assert told["PUT", "/sessions/{id}"] >= {200, 201, 400, 401, 409, 413, 415, 422, 503}
    assert told["GET", "/sessions/{id}"] >= {200, 401, 404, 422, 503}
    assert told["DELETE", "/sessions/{id}"] >= {204, 401, 404, 422, 503}
    assert told["GET", "/sessions"] >= {200, 401, 422, 503}
    assert told["POST", "/encode"] >= {200, 400, 401, 413, 415, 422, 503}
    assert told["POST", "/decode"] >= {200, 400, 401, 413, 415, 422, 503}


def test_the_documents_examples_are_accepted_as_they_stand(caller: Caller, document: Json, session: str) -> None:
    tried = 0

    for (method, path), operation in operations(document).items():
        examples = operation.get("requestBody", {}).get("content", {}).get(MSGPACK, {}).get("examples", {})
        for example in examples.values():
            body = base64.b64decode(example["x-msgpack-base64"])
            answer = caller.send(method, path.format(id=f"{session}.{tried}"), body)
            assert answer.status in (200, 201), (method, path, answer)
            assert msgpack.unpackb(body).keys() == example["value"].keys()
            tried += 1

    assert tried >= 4


def test_the_document_for_people_is_served(caller: Caller) -> None:
    answer = caller.get("/docs")

    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/html")
