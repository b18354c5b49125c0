"""Appends to sessions over HTTP, all layers at once or one by one."""

import msgpack
import numpy as np
import pytest

from hadakv_kernels import DTYPES, HEAD_DIMS, Codec
from support.contract import MSGPACK, Caller, append_body, stream, tensor
from support.inputs.arrays import CODECS, DEFAULT, pair, row_nbytes


def test_first_append_creates_session_and_next_extends_it(caller: Caller, session: str) -> None:
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


def test_percent_encoded_path_names_the_same_session(caller: Caller, session: str) -> None:
    k, v = pair(2, 2, 3)
    encoded = f"%{ord(session[0]):02x}{session[1:]}"

    caller.append(session, k, v)
    response = caller.append(encoded, k, v)

    assert (response.status, response.body["session"], response.body["length"]) == (200, session, 6)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.kind}-{codec.bits}-{codec.layout}")
def test_every_dtype_and_head_dim_matches_the_reference(
    caller: Caller, session: str, codec: Codec, dtype: str, head_dim: int
) -> None:
    k, v = pair(2, 2, 3, head_dim, dtype=dtype)

    response = caller.append(session, k, v, codec=codec.to_mapping())

    assert response.body["k"] == stream(k, codec)
    assert response.body["v"] == stream(v, codec)
    assert caller.info(session)["nbytes"] == 2 * 12 * row_nbytes(codec, head_dim)


def test_tensor_with_three_axes_is_one_layer(caller: Caller, session: str) -> None:
    k, v = pair(1, 2, 4)

    response = caller.append(session, k[0], v[0], layer=2)

    assert response.body["k"] == stream(k, DEFAULT)
    assert [layer["length"] for layer in caller.info(session)["layers"]] == [4]


def test_k_and_v_may_have_different_codecs(caller: Caller, session: str) -> None:
    k, v = pair(2, 2, 300)
    k_codec, v_codec = Codec(kind="float16"), Codec(bits=3, norm="unbiased")
    requested = {"k": {"kind": "float16"}, "v": {"bits": 3, "norm": "unbiased"}}

    response = caller.append(session, k, v, codec=requested)
    again = caller.append(session, k, v, codec=requested)

    info = caller.info(session)
    assert (response.status, again.status) == (201, 200)
    assert response.body["k"] == {"values": tensor(k)}
    assert response.body["v"] == stream(v, v_codec)
    assert info["codec"] == {"k": k_codec.to_mapping(), "v": v_codec.to_mapping()}
    assert info["nbytes"] == 2 * 2 * 600 * (row_nbytes(k_codec, 64) + row_nbytes(v_codec, 64))
    assert caller.read(session, stop=300)["k"] == {"values": tensor(k)}


def test_codec_for_k_only_leaves_default_for_v(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 2)

    response = caller.append(session, k, v, codec={"k": {"bits": 8}})

    assert response.body["k"] == stream(k, Codec(bits=8))
    assert response.body["v"] == stream(v, DEFAULT)


def test_append_of_no_tokens_changes_nothing(caller: Caller, session: str) -> None:
    k, v = pair(2, 1, 3)
    caller.append(session, k, v)
    before = caller.snapshot(session)

    response = caller.append(session, k[:, :, :0], v[:, :, :0], position=3)

    assert response.status == 200
    assert (response.body["position"], response.body["tokens"], response.body["length"]) == (3, 0, 3)
    assert response.body["k"] == stream(k[:, :, :0], DEFAULT)
    assert caller.snapshot(session) == before


def test_minimal_response_has_no_tensors(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 2)

    response = caller.post(f"/sessions/{session}/kv", append_body(k, v), prefer="respond-async, return=minimal")

    assert response.status == 201
    assert response.body == {"session": session, "position": 0, "tokens": 2, "length": 2}
    assert caller.read(session)["k"] == stream(k, DEFAULT)


@pytest.mark.parametrize("prefer", ["return=representation", "wait=5"])
def test_other_preferences_do_not_change_the_response(caller: Caller, session: str, prefer: str) -> None:
    k, v = pair(1, 1, 2)

    response = caller.post(f"/sessions/{session}/kv", append_body(k, v), prefer=prefer)

    assert response.body["v"] == stream(v, DEFAULT)


def test_chunked_body_is_accepted(caller: Caller, session: str) -> None:
    k, v = pair(2, 2, 400)
    body = msgpack.packb(append_body(k, v))
    pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))

    response = caller.http.post(f"/sessions/{session}/kv", content=pieces, headers={"content-type": MSGPACK})

    assert response.status_code == 201
    assert caller.read(session)["v"] == stream(v, DEFAULT)


@pytest.mark.parametrize("codec", [DEFAULT, Codec(kind="float16")], ids=lambda codec: codec.kind)
def test_concurrent_large_bodies_are_kept_apart(caller: Caller, session: str, codec: Codec) -> None:
    pairs = [pair(1, 2, tokens) for tokens in (900, 300, 1200, 700, 310)]

    responses = [caller.append(session, k, v, codec=codec.to_mapping()) for k, v in pairs]

    held = caller.read(session)
    assert [response.body["k"] for response in responses] == [stream(k, codec) for k, _ in pairs]
    assert held["k"] == stream(np.concatenate([k for k, _ in pairs], axis=2), codec)
    assert held["v"] == stream(np.concatenate([v for _, v in pairs], axis=2), codec)


# Layer by layer


def test_layers_may_be_appended_one_by_one(caller: Caller, session: str) -> None:
    k, v = pair(4, 2, 300)

    statuses = [caller.append(session, k[layer], v[layer], layer=layer, position=0).status for layer in (0, 1, 2, 3)]

    assert statuses == [201, 200, 200, 200]
    assert caller.read(session)["k"] == stream(k, DEFAULT)
    assert caller.info(session)["length"] == 300


def test_layers_may_have_gaps_and_different_lengths(caller: Caller, session: str) -> None:
    k, v = pair(6, 1, 9)

    caller.append(session, k[4:6, :, :3], v[4:6, :, :3], layer=4)
    caller.append(session, k[1, :, :9], v[1, :, :9], layer=1)
    caller.append(session, k[0:2, :, :0], v[0:2, :, :0], layer=2)
    caller.append(session, k[5, :, 3:5], v[5, :, 3:5], layer=5)

    info = caller.info(session)
    lengths = {layer["layer"]: layer["length"] for layer in info["layers"]}
    assert lengths == {1: 9, 2: 0, 3: 0, 4: 3, 5: 5}
    assert info["length"] == 0
    assert info["nbytes"] == (9 + 3 + 5) * 2 * row_nbytes(DEFAULT, 64)
    assert caller.read(session, layers="1:2")["k"] == stream(k[1:2], DEFAULT)
    assert caller.read(session, layers="5:6")["v"] == stream(v[5:6, :, :5], DEFAULT)
    both = caller.read(session, layers="4:6")
    assert (both["stop"], both["length"]) == (3, 3)
    assert both["k"] == stream(k[4:6, :, :3], DEFAULT)


def test_layers_may_be_appended_together_after_separately(caller: Caller, session: str) -> None:
    k, v = pair(4, 1, 600)

    caller.append(session, k[:, :, :250], v[:, :, :250])
    caller.append(session, k[1:3, :, 250:260], v[1:3, :, 250:260], layer=1)
    for layer in (3, 0):
        caller.append(session, k[layer, :, 250:260], v[layer, :, 250:260], layer=layer)
    response = caller.append(session, k[:, :, 260:], v[:, :, 260:], position=260)

    assert response.status == 200
    assert caller.read(session)["k"] == stream(k, DEFAULT)
    assert caller.read(session, layers="2:4", start=240, stop=270)["v"] == stream(v[2:4, :, 240:270], DEFAULT)
