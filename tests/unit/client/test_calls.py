"""Requests that calls build, and responses that they parse. No network."""

from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hadakv_client import Codec, Encoded, HadakvError, ProtocolError, StoredAppend
from hadakv_client.http import calls
from hadakv_client.protocol import Call, Response

K = np.ones((2, 3, 5, 64), np.float16)
TENSORS = {"k": K, "v": K}


def sent_message(call: Call[Any]) -> Any:
    assert call.request.body is not None
    return msgpack.unpackb(b"".join(call.request.body))


def parse(call: Call[Any], document: object, status: int = 200) -> Any:
    return call.parse(Response(status, {}, msgpack.packb(document)))


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    itemsize = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4}[dtype]
    return {"dtype": dtype, "shape": shape, "data": bytes(int(np.prod(shape)) * itemsize)}


def packed() -> dict[str, Any]:
    return {"packed": tensor("uint8", 2, 3, 5, 32), "norms": tensor("float32", 2, 3, 5, 1)}


def append_document(**changes: Any) -> dict[str, Any]:
    document = {"session": "a", "position": 7, "tokens": 5, "length": 12, "k": packed(), "v": packed()}
    return {**document, **changes}


def range_document(**changes: Any) -> dict[str, Any]:
    document = {"session": "a", "group": 0, "layers": [0, 1], "start": 2, "stop": 7, "length": 9}
    return {**document, "k": packed(), "v": packed(), **changes}


def info_document(**changes: Any) -> dict[str, Any]:
    document = {
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
    return {**document, **changes}


def test_append_sends_arrays_and_options() -> None:
    call = calls.append("a", (K, K), 1, 7, {"bits": 3}, minimal=False)

    assert (call.request.method, call.request.path) == ("POST", "/sessions/a/kv")
    assert call.request.headers == {
        "accept": "application/msgpack",
        "content-type": "application/msgpack",
        "content-length": str(call.request.body and call.request.body.nbytes),
    }
    expected = {"dtype": "float16", "shape": [2, 3, 5, 64], "data": K.tobytes()}
    assert sent_message(call) == {"k": expected, "v": expected, "layer": 1, "position": 7, "codec": {"bits": 3}}


def test_append_at_end_is_not_idempotent() -> None:
    at_end = calls.append("a", (K, K), 0, "end", None, minimal=False)
    at_seven = calls.append("a", (K, K), 0, 7, None, minimal=False)

    assert sent_message(at_end).keys() == {"k", "v", "layer"}
    assert not at_end.request.idempotent
    assert at_seven.request.idempotent


def test_minimal_append_sends_prefer_header() -> None:
    call = calls.append("a", (K, K), 0, 7, None, minimal=True)

    result = parse(call, {"session": "a", "position": 7, "tokens": 5, "length": 12}, 201)

    assert call.request.headers["prefer"] == "return=minimal"
    assert (result.position, result.length, result.created) == (7, 12, True)
    assert not isinstance(result, StoredAppend)


def test_append_returns_stored_streams() -> None:
    call = calls.append("a", (K, K), 0, "end", None, minimal=False)

    appended = parse(call, append_document(unknown="field"))

    assert (appended.session, appended.position, appended.tokens, appended.length) == ("a", 7, 5, 12)
    assert not appended.created
    assert appended.k.packed.shape == (2, 3, 5, 32)
    assert appended.v.norms.shape == (2, 3, 5, 1)


def test_append_returns_float16_values_as_packed_bytes() -> None:
    call = calls.append("a", (K, K), 0, 7, None, minimal=False)
    values = {"values": {"dtype": "float16", "shape": K.shape, "data": K.tobytes()}}

    appended = parse(call, append_document(k=values, v=values))

    assert appended.k.packed.tobytes() == K.tobytes()
    assert appended.k.packed.shape == (2, 3, 5, 128)
    assert appended.k.norms.shape == (2, 3, 5, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"session": "b"}, "session is 'b'"),
        ({"position": 8, "length": 13}, "position is 8, expected 7"),
        ({"position": None}, "position is NoneType, expected int"),
        ({"tokens": 4, "length": 11}, "tokens is 4"),
        ({"length": 13}, "length is 13"),
        ({"k": None}, "packed is NoneType, expected dict"),
        ({"k": {"packed": tensor("uint8", 2, 3, 5, 32)}}, "norms is NoneType, expected dict"),
        ({"k": {**packed(), "norms": tensor("float32", 2, 3, 4, 1)}}, r"k\.norms\.shape"),
        ({"v": {**packed(), "packed": tensor("float32", 2, 3, 5, 8)}}, r"v\.packed has dtype 'float32'"),
        ({"k": {"packed": tensor("uint8", 5, 32), "norms": tensor("float32", 5, 1)}}, "shape"),
        ({"k": {"values": tensor("float32", 2, 3, 5, 64)}}, r"k\.values has dtype 'float32'"),
    ],
)
def test_invalid_append_response_raises_protocol_error(changes: dict[str, Any], message: str) -> None:
    call = calls.append("a", (K, K), 0, 7, None, minimal=False)

    with pytest.raises(ProtocolError, match=message):
        parse(call, append_document(**changes))


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ((None, None, None, "packed"), "/sessions/a/kv?form=packed"),
        ((0, 12, (1, 3), "float32"), "/sessions/a/kv?start=0&stop=12&layers=1%3A3&form=float32"),
    ],
)
def test_read_sends_range_and_form_as_query(arguments: Any, path: str) -> None:
    assert calls.read("a", *arguments).request.path == path


@pytest.mark.parametrize(("form", "dtype"), [("float16",) * 2, ("bfloat16",) * 2, ("rotated", "float32")])
def test_read_returns_values_in_requested_form(form: Any, dtype: str) -> None:
    values = {"values": tensor(dtype, 2, 3, 5, 64)}

    found = parse(calls.read("a", 2, None, None, form), range_document(k=values, v=values))

    assert (found.start, found.stop, found.length) == (2, 7, 9)
    assert found.k.dtype.name == dtype
    assert found.v.shape == (2, 3, 5, 64)


@pytest.mark.parametrize("form", ["packed", "bfloat16", "rotated"])
def test_read_of_session_without_tokens_is_empty(form: Any) -> None:
    document = range_document(layers=[], start=0, stop=0, length=0, k=None, v=None)

    found = parse(calls.read("a", None, None, None, form), document)

    assert (found.k.packed if form == "packed" else found.k).shape == (0, 0, 0, 0)


def test_read_with_wrong_token_count_raises_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="for 4 tokens"):
        parse(calls.read("a", None, None, None, "packed"), range_document(start=0, stop=4))


def test_read_names_session_and_layers() -> None:
    found = parse(calls.read("a", 2, 7, (3, 12), "packed"), range_document(layers=[3, 11]))

    assert (found.session, found.group, found.layers) == ("a", 0, (3, 11))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"session": "b"}, "session is 'b', expected 'a'"),
        ({"session": None}, "session is NoneType"),
        ({"group": 1}, "group is 1"),
        ({"group": None}, "group is NoneType"),
        ({"start": 3}, "start is 3, expected 2"),
        ({"stop": 6}, "stop is 6, expected 7"),
        ({"length": 6}, "stop is 7, expected 6"),
        ({"layers": [3]}, "number of layers of k is 2, expected 1"),
        ({"layers": [11, 3]}, "expected increasing integers"),
        ({"layers": [3, 12]}, "expected layers of 3:12"),
        ({"layers": [2, 3]}, "expected layers of 3:12"),
        ({"layers": None}, "layers is NoneType"),
    ],
)
def test_answer_to_another_read_raises_protocol_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse(calls.read("a", 2, 7, (3, 12), "packed"), range_document(**{"layers": [3, 11], **changes}))


def test_session_info_is_parsed() -> None:
    info = parse(calls.info("a"), info_document(declared_layers=4))

    assert info.codec == (Codec(bits=3), Codec(bits=4))
    assert info.layers == ((0, 2, 12),)
    assert info.created.isoformat() == "2026-01-02T03:04:05+00:00"
    assert info.last_used > info.created
    assert info.expires is None


def test_session_info_with_undecided_fields_is_parsed() -> None:
    undecided = dict.fromkeys(["codec", "kv_heads", "head_dim", "window", "ttl_seconds"])

    info = parse(calls.info("a"), info_document(layers=[], length=0, **undecided))

    assert (info.codec, info.kv_heads, info.head_dim, info.layers) == (None, None, None, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"session": 5},
        {"codec": {"k": {}}},
        {"codec": {"k": {}, "v": {"bits": 99}}},
        {"codec": {"k": {}, "v": {"unknown": "option"}}},
        {"layers": [[0, 1, 2]]},
        {"layers": [{"layer": 0}]},
        {"created": "yesterday"},
        {"created": None},
        {"expires": 12.5},
        {"nbytes": "many"},
    ],
)
def test_invalid_session_info_raises_protocol_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        parse(calls.info("a"), info_document(**changes))


def test_create_sends_only_given_options() -> None:
    call = calls.create("a", {"codec": None, "layers": 4, "window": None, "ttl_seconds": 2.5})

    assert (call.request.method, call.request.path) == ("PUT", "/sessions/a")
    assert sent_message(call) == {"layers": 4, "ttl_seconds": 2.5}


@pytest.mark.parametrize(
    ("prefix", "after", "path"),
    [(None, None, "/sessions"), ("a b", "c:1", "/sessions?prefix=a+b&after=c%3A1")],
)
def test_list_sends_prefix_and_last_id_as_query(prefix: str | None, after: str | None, path: str) -> None:
    assert calls.list_sessions(prefix, after).request.path == path


@pytest.mark.parametrize("next_", ["b", "a", ""])
def test_list_that_does_not_advance_raises_protocol_error(next_: str) -> None:
    with pytest.raises(ProtocolError, match="which is not after 'b'"):
        parse(calls.list_sessions(None, "b"), {"sessions": [], "next": next_})


def test_delete_accepts_404_only_for_a_retry() -> None:
    call = calls.delete("a")
    not_found = Response(404, {}, b'{"type": "urn:hadakv:problem:session-not-found"}')

    assert call.parse_retry is not None
    call.parse_retry(not_found)
    with pytest.raises(HadakvError, match="session-not-found"):
        call.parse(not_found)


def test_decoded_shape_must_match_encoded_shape() -> None:
    encoded = Encoded(np.zeros((3, 32), np.uint8), np.zeros((3, 1), np.float32))
    call = calls.decode(encoded, {"bits": 4}, 64, "bfloat16")

    decoded = parse(call, {"values": tensor("bfloat16", 3, 64)})

    assert decoded.shape == (3, 64)
    assert sent_message(call).keys() == {"packed", "norms", "codec", "head_dim", "form"}
    with pytest.raises(ProtocolError, match="shape"):
        parse(call, {"values": tensor("bfloat16", 2, 64)})


def test_decode_of_float16_codec_sends_values() -> None:
    encoded = Encoded(K.view(np.uint8), np.zeros((2, 3, 5, 0), np.float32))

    message = sent_message(calls.decode(encoded, {"kind": "float16"}, 64, "float32"))

    assert message.keys() == {"values", "codec", "head_dim", "form"}
    assert message["values"]["data"] == K.tobytes()


def test_diagnostics_of_float16_codec_raise_value_error() -> None:
    with pytest.raises(ValueError, match="has no diagnostics"):
        calls.encode(K, {"kind": "float16"}, diagnostics=True)


def test_encode_returns_diagnostics_on_request() -> None:
    x = K[0, 0]
    stream = {"packed": tensor("uint8", 5, 32), "norms": tensor("float32", 5, 1)}
    extra = {"scaled": tensor("float32", 5, 64), "rms": tensor("float32", 5, 1)}

    encoded = parse(calls.encode(x, None, diagnostics=False), stream)
    diagnosed = parse(calls.encode(x, None, diagnostics=True), stream | extra)

    assert encoded.packed.shape == (5, 32)
    assert diagnosed.encoded.packed.shape == (5, 32)
    assert diagnosed.scaled.shape == (5, 64)
    with pytest.raises(ProtocolError, match=r"packed\.shape"):
        parse(calls.encode(K, None, diagnostics=False), stream)


# Valid documents with some fields changed, so that the checks behind the first one run too.
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
    "append": (calls.append("a", (K, K), 0, 7, None, minimal=False), append_document()),
    "read": (calls.read("a", 0, 5, None, "packed"), range_document(start=0, stop=5)),
    "values": (calls.read("a", 0, 5, None, "float32"), range_document(start=0, stop=5)),
    "info": (calls.info("a"), info_document()),
    "page": (calls.list_sessions(None, None), {"sessions": [info_document()], "next": None}),
    "encode": (calls.encode(K, None, diagnostics=True), {}),
    "decode": (calls.decode(Encoded(K.view(np.uint8), K), {"kind": "float16"}, 64, "float16"), {}),
}


@given(st.sampled_from(list(CALLS)), st.data())
def test_any_response_is_parsed_or_raises_protocol_error(name: str, data: st.DataObject) -> None:
    call, valid = CALLS[name]
    keys = st.sampled_from([*valid, "k", "values", "packed", "norms"])
    changes = data.draw(st.dictionaries(keys, streams | tensors | anything, max_size=3))

    with suppress(ProtocolError):
        parse(call, {**valid, **changes})
