"""Requests built and answers read, without a wire between them."""

from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hadakv_client import Appended, Codec, Encoded, HadakvError, ProtocolError, UnsupportedCodec
from hadakv_client.http import calls
from hadakv_client.protocol import Call, Response

K = np.ones((2, 3, 5, 64), np.float16)
TENSORS = {"k": K, "v": K}


def sent(call: Call[Any]) -> Any:
    assert call.request.body is not None
    return msgpack.unpackb(b"".join(call.request.body))


def answered(call: Call[Any], answer: object, status: int = 200) -> Any:
    return call.parse(Response(status, {}, msgpack.packb(answer)))


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    itemsize = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4}[dtype]
    return {"dtype": dtype, "shape": shape, "data": bytes(int(np.prod(shape)) * itemsize)}


def packed() -> dict[str, Any]:
    return {"packed": tensor("uint8", 2, 3, 5, 32), "norms": tensor("float32", 2, 3, 5, 1)}


def append_answer(**changes: Any) -> dict[str, Any]:
    answer = {"session": "a", "position": 7, "tokens": 5, "length": 12, "k": packed(), "v": packed()}
    return {**answer, **changes}


def info_answer(**changes: Any) -> dict[str, Any]:
    answer = {
        "session": "a",
        "codec": {"k": {"bits": 3}, "v": {"bits": 4}},
        "kv_heads": 3,
        "head_dim": 64,
        "layers": [{"layer": 0, "start": 2, "length": 12}],
        "length": 12,
        "nbytes": 100,
        "raw_nbytes": 400,
        "tier": "memory",
        "window": 10,
        "ttl_seconds": 60,
        "durability": "spill",
        "created": "2026-01-02T03:04:05Z",
        "last_used": "2026-01-02T03:04:06.5+00:00",
        "expires": None,
    }
    return {**answer, **changes}


def test_an_append_says_what_it_sends_and_what_it_wants() -> None:
    call = calls.append("a", (K, K), 1, 7, {"bits": 3}, minimal=False)

    assert (call.request.method, call.request.path) == ("POST", "/sessions/a/kv")
    assert call.request.headers == {
        "accept": "application/msgpack",
        "content-type": "application/msgpack",
        "content-length": str(call.request.body and call.request.body.nbytes),
    }
    expected = {"dtype": "float16", "shape": [2, 3, 5, 64], "data": K.tobytes()}
    assert sent(call) == {"k": expected, "v": expected, "layer": 1, "position": 7, "codec": {"bits": 3}}


def test_an_append_to_wherever_the_end_is_sends_no_position_and_cannot_be_repeated() -> None:
    somewhere = calls.append("a", (K, K), 0, "end", None, minimal=False)
    at_seven = calls.append("a", (K, K), 0, 7, None, minimal=False)

    assert sent(somewhere).keys() == {"k", "v", "layer"}
    assert not somewhere.request.idempotent
    assert at_seven.request.idempotent


def test_a_minimal_append_prefers_so() -> None:
    call = calls.append("a", (K, K), 0, 7, None, minimal=True)

    placed = answered(call, {"session": "a", "position": 7, "tokens": 5, "length": 12}, 201)

    assert call.request.headers["prefer"] == "return=minimal"
    assert (placed.position, placed.length, placed.created) == (7, 12, True)
    assert not isinstance(placed, Appended)


def test_an_append_s_answer_has_what_was_stored() -> None:
    call = calls.append("a", (K, K), 0, "end", None, minimal=False)

    appended = answered(call, append_answer(beyond="what is known"))

    assert (appended.session, appended.position, appended.tokens, appended.length) == ("a", 7, 5, 12)
    assert not appended.created
    assert appended.k.packed.shape == (2, 3, 5, 32)
    assert appended.v.norms.shape == (2, 3, 5, 1)


def test_the_float16_kind_comes_as_the_bytes_of_its_values() -> None:
    call = calls.append("a", (K, K), 0, 7, None, minimal=False)
    values = {"values": {"dtype": "float16", "shape": K.shape, "data": K.tobytes()}}

    appended = answered(call, append_answer(k=values, v=values))

    assert appended.k.packed.tobytes() == K.tobytes()
    assert appended.k.packed.shape == (2, 3, 5, 128)
    assert appended.k.norms.shape == (2, 3, 5, 0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"session": "b"}, "session is 'b'"),
        ({"position": 8, "length": 13}, "position is 8 instead of 7"),
        ({"position": None}, "position should be int"),
        ({"tokens": 4, "length": 11}, "tokens is 4"),
        ({"length": 13}, "length is 13"),
        ({"k": None}, "packed should be dict"),
        ({"k": {"packed": tensor("uint8", 2, 3, 5, 32)}}, "norms should be dict"),
        ({"k": {**packed(), "norms": tensor("float32", 2, 3, 4, 1)}}, r"k\.norms\.shape"),
        ({"v": {**packed(), "packed": tensor("float32", 2, 3, 5, 8)}}, r"v\.packed is 'float32'"),
        ({"k": {"packed": tensor("uint8", 5, 32), "norms": tensor("float32", 5, 1)}}, "shape"),
        ({"k": {"values": tensor("float32", 2, 3, 5, 64)}}, r"k\.values is 'float32'"),
    ],
)
def test_an_append_s_answer_that_makes_no_sense_is_a_protocol_error(changes: dict[str, Any], complaint: str) -> None:
    call = calls.append("a", (K, K), 0, 7, None, minimal=False)

    with pytest.raises(ProtocolError, match=complaint):
        answered(call, append_answer(**changes))


@pytest.mark.parametrize("k", [K[0, 0], K[None]])
def test_keys_need_three_or_four_axes(k: Any) -> None:
    with pytest.raises(ValueError, match=r"k must be \[layers, kv_heads, tokens, head_dim\]"):
        calls.streams(k, K)


@pytest.mark.parametrize("session", ["", "a/b", "ä", "a b", "a?", ".", "..", "x" * 129, "a\n"])
def test_an_id_that_has_no_place_in_a_path_is_refused(session: str) -> None:
    with pytest.raises(ValueError, match="a session's id must be"):
        calls.checked_id(session)


@pytest.mark.parametrize("session", ["a", "A-Z.0_9:", "...", "x" * 128])
def test_an_id_is_taken_as_it_is(session: str) -> None:
    assert calls.checked_id(session) == session


def test_a_codec_is_given_as_an_object_or_as_options_for_both_streams_or_each() -> None:
    options = Codec(bits=3).to_mapping()

    assert calls.session_codec(None) is None
    assert calls.session_codec(Codec(bits=3)) == options
    assert calls.session_codec({"bits": 3}) == options
    assert calls.session_codec({"k": {"bits": 3}, "v": Codec(bits=3)}) == {"k": options, "v": options}
    assert calls.session_codec({"k": {"bits": 3}}) == {"k": options}


@pytest.mark.parametrize("codec", [{"bits": 7}, {"colour": 1}, {"k": {"bits": 7}}, {"k": {}, "bits": 4}])
def test_a_codec_there_is_not_is_refused_before_anything_is_sent(codec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"codec"):
        calls.session_codec(codec)


def test_an_unsupported_codec_is_the_kernels_own_error() -> None:
    with pytest.raises(UnsupportedCodec, match="bits"):
        calls.encode(K, {"bits": 7}, diagnostics=False)


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ((None, None, None, "packed"), "/sessions/a/kv?form=packed"),
        ((0, 12, (1, 3), "float32"), "/sessions/a/kv?start=0&stop=12&layers=1%3A3&form=float32"),
    ],
)
def test_a_read_asks_for_what_is_wanted(arguments: Any, path: str) -> None:
    assert calls.read("a", *arguments).request.path == path


@pytest.mark.parametrize(("form", "dtype"), [("float16",) * 2, ("bfloat16",) * 2, ("rotated", "float32")])
def test_a_range_has_the_values_of_the_form_asked_for(form: Any, dtype: str) -> None:
    values = {"values": tensor(dtype, 2, 3, 5, 64)}

    found = answered(
        calls.read("a", 2, None, None, form), {"start": 2, "stop": 7, "length": 9, "k": values, "v": values}
    )

    assert (found.start, found.stop, found.length) == (2, 7, 9)
    assert found.k.dtype.name == dtype
    assert found.v.shape == (2, 3, 5, 64)


@pytest.mark.parametrize("form", ["packed", "bfloat16", "rotated"])
def test_a_range_of_a_session_without_tokens_is_empty(form: Any) -> None:
    answer = {"start": 0, "stop": 0, "length": 0, "k": None, "v": None}

    found = answered(calls.read("a", None, None, None, form), answer)

    assert (found.k.packed if form == "packed" else found.k).shape == (0, 0, 0, 0)


def test_a_range_of_other_tokens_than_it_says_is_a_protocol_error() -> None:
    answer = {"start": 0, "stop": 4, "length": 9, "k": packed(), "v": packed()}

    with pytest.raises(ProtocolError, match="for 4 tokens"):
        answered(calls.read("a", None, None, None, "packed"), answer)


def test_a_session_is_described() -> None:
    info = answered(calls.info("a"), info_answer(declared_layers=4))

    assert info.codec == (Codec(bits=3), Codec(bits=4))
    assert info.layers == ((0, 2, 12),)
    assert info.created.isoformat() == "2026-01-02T03:04:05+00:00"
    assert info.last_used > info.created
    assert info.expires is None


def test_a_session_that_has_not_decided_is_described() -> None:
    undecided = dict.fromkeys(["codec", "kv_heads", "head_dim", "window", "ttl_seconds"])

    info = answered(calls.info("a"), info_answer(layers=[], length=0, **undecided))

    assert (info.codec, info.kv_heads, info.head_dim, info.layers) == (None, None, None, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"session": 5},
        {"codec": {"k": {}}},
        {"codec": {"k": {}, "v": {"bits": 99}}},
        {"codec": {"k": {}, "v": {"from": "the future"}}},
        {"layers": [[0, 1, 2]]},
        {"layers": [{"layer": 0}]},
        {"created": "yesterday"},
        {"created": None},
        {"expires": 12.5},
        {"nbytes": "many"},
    ],
)
def test_a_description_that_makes_no_sense_is_a_protocol_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        answered(calls.info("a"), info_answer(**changes))


def test_only_what_is_given_is_asked_of_a_new_session() -> None:
    call = calls.create("a", {"codec": None, "layers": 4, "window": None, "ttl_seconds": 2.5})

    assert (call.request.method, call.request.path) == ("PUT", "/sessions/a")
    assert sent(call) == {"layers": 4, "ttl_seconds": 2.5}


@pytest.mark.parametrize(
    ("prefix", "after", "path"),
    [(None, None, "/sessions"), ("a b", "c:1", "/sessions?prefix=a+b&after=c%3A1")],
)
def test_a_list_is_asked_for_in_pages(prefix: str | None, after: str | None, path: str) -> None:
    assert calls.sessions(prefix, after).request.path == path


@pytest.mark.parametrize("next_", ["b", "a", ""])
def test_a_list_that_does_not_get_on_is_a_protocol_error(next_: str) -> None:
    with pytest.raises(ProtocolError, match="already"):
        answered(calls.sessions(None, "b"), {"sessions": [], "next": next_})


def test_deleting_again_what_is_gone_is_done_but_deleting_what_never_was_is_not() -> None:
    call = calls.delete("a")
    gone = Response(404, {}, b'{"type": "urn:hadakv:problem:session-not-found"}')

    assert call.parse_repetition is not None
    call.parse_repetition(gone)
    with pytest.raises(HadakvError, match="session-not-found"):
        call.parse(gone)


def test_what_is_decoded_has_the_shape_of_what_was_encoded() -> None:
    encoded = Encoded(np.zeros((3, 32), np.uint8), np.zeros((3, 1), np.float32))
    call = calls.decode(encoded, {"bits": 4}, 64, "bfloat16")

    decoded = answered(call, {"values": tensor("bfloat16", 3, 64)})

    assert decoded.shape == (3, 64)
    assert sent(call).keys() == {"packed", "norms", "codec", "head_dim", "form"}
    with pytest.raises(ProtocolError, match="shape"):
        answered(call, {"values": tensor("bfloat16", 2, 64)})


def test_what_was_kept_as_float16_is_decoded_from_its_values() -> None:
    encoded = Encoded(K.view(np.uint8), np.zeros((2, 3, 5, 0), np.float32))

    message = sent(calls.decode(encoded, {"kind": "float16"}, 64, "float32"))

    assert message.keys() == {"values", "codec", "head_dim", "form"}
    assert message["values"]["data"] == K.tobytes()


def test_there_is_nothing_to_diagnose_about_float16() -> None:
    with pytest.raises(ValueError, match="diagnosed"):
        calls.encode(K, {"kind": "float16"}, diagnostics=True)


def test_what_was_encoded_comes_with_diagnostics_if_asked_for() -> None:
    x = K[0, 0]
    stream = {"packed": tensor("uint8", 5, 32), "norms": tensor("float32", 5, 1)}
    seen = {"scaled": tensor("float32", 5, 64), "rms": tensor("float32", 5, 1)}

    encoded = answered(calls.encode(x, None, diagnostics=False), stream)
    diagnosed = answered(calls.encode(x, None, diagnostics=True), stream | seen)

    assert encoded.packed.shape == (5, 32)
    assert diagnosed.encoded.packed.shape == (5, 32)
    assert diagnosed.scaled.shape == (5, 64)
    with pytest.raises(ProtocolError, match=r"packed\.shape"):
        answered(calls.encode(K, None, diagnostics=False), stream)


# Answers that are right but for some members, so that the checks behind the first one are reached too.
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["uint8", "float16", "float32", "int8"]) | anything,
        "shape": st.lists(st.integers(0, 5) | anything, max_size=5) | anything,
        "data": st.binary(max_size=64) | anything,
    },
)
streams = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("packed", "norms", "values", "scaled", "rms"), tensors | anything)
)
CALLS: dict[str, tuple[Call[Any], dict[str, Any]]] = {
    "append": (calls.append("a", (K, K), 0, 7, None, minimal=False), append_answer()),
    "read": (calls.read("a", 0, 5, None, "packed"), {"start": 0, "stop": 5, "length": 9, "k": packed(), "v": packed()}),
    "values": (calls.read("a", 0, 5, None, "float32"), {"start": 0, "stop": 5, "length": 9}),
    "info": (calls.info("a"), info_answer()),
    "page": (calls.sessions(None, None), {"sessions": [info_answer()], "next": None}),
    "encode": (calls.encode(K, None, diagnostics=True), {}),
    "decode": (calls.decode(Encoded(K.view(np.uint8), K), {"kind": "float16"}, 64, "float16"), {}),
}


@given(st.sampled_from(list(CALLS)), st.data())
def test_whatever_is_answered_is_understood_or_a_protocol_error(name: str, data: st.DataObject) -> None:
    call, right = CALLS[name]
    keys = st.sampled_from([*right, "k", "values", "packed", "norms"])
    changes = data.draw(st.dictionaries(keys, streams | tensors | anything, max_size=3))

    with suppress(ProtocolError):
        answered(call, {**right, **changes})
