"""Checks of session ids, codecs and arrays before anything is sent."""

from typing import Any

import numpy as np
import pytest

from hadakv_client import AsyncClient, Client, Codec, UnsupportedCodec, check_session_id, check_url
from hadakv_client.http import calls
from hadakv_client.http.arguments import integer, session_codec
from hadakv_client.http.body import Body

K = np.ones((2, 3, 5, 64), np.float16)


@pytest.mark.parametrize("session", ["", "a/b", "ä", "a b", "a?", ".", "..", "x" * 129, "a\n"])
def test_invalid_session_id_raises_value_error(session: str) -> None:
    with pytest.raises(ValueError, match="a session id must be"):
        check_session_id(session)


@pytest.mark.parametrize("session", ["a", "A-Z.0_9:", "...", "x" * 128])
def test_valid_session_id_is_returned_unchanged(session: str) -> None:
    assert check_session_id(session) == session


def test_session_codec_accepts_one_codec_or_one_per_stream() -> None:
    options = Codec(bits=3).to_mapping()

    assert session_codec(None) is None
    assert session_codec(Codec(bits=3)) == options
    assert session_codec({"bits": 3}) == options
    assert session_codec({"k": {"bits": 3}, "v": Codec(bits=3)}) == {"k": options, "v": options}
    assert session_codec({"k": {"bits": 3}}) == {"k": options}


@pytest.mark.parametrize("codec", [{"bits": 7}, {"colour": 1}, {"k": {"bits": 7}}, {"k": {}, "bits": 4}])
def test_unsupported_session_codec_raises_value_error(codec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"codec"):
        session_codec(codec)


def test_unsupported_codec_raises_the_error_of_the_kernels() -> None:
    with pytest.raises(UnsupportedCodec, match="bits"):
        calls.encode(K, {"bits": 7}, diagnostics=False)


@pytest.mark.parametrize("codec", [4, "bits", 0, {"k": 4}])
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_codec_that_is_no_mapping_raises_type_error(client: Any, codec: Any) -> None:
    with pytest.raises(TypeError, match="codec must be a Codec or a mapping"):
        client("http://127.0.0.1:1").session("a", codec)


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None])
def test_integer_rejects_other_types(value: object) -> None:
    with pytest.raises(TypeError, match="layer must be an integer"):
        integer(value, "layer")


@pytest.mark.parametrize("value", [0, -3, np.int64(7), np.uint8(200)])
def test_integer_accepts_integers_of_numpy(value: int) -> None:
    assert integer(value, "layer") == int(value)


def test_prefix_that_is_longer_than_an_id_raises_value_error() -> None:
    with pytest.raises(ValueError, match="at most 128 characters, not 129"):
        calls.list_sessions("x" * 129, None)

    assert calls.list_sessions("x" * 128, None).request.path == f"/sessions?prefix={'x' * 128}"


@pytest.mark.parametrize("number", [1 << 64, -(1 << 63) - 1, 10**100])
def test_integer_beyond_64_bits_raises_value_error(number: int) -> None:
    with pytest.raises(ValueError, match=f"length is too large: {number}"):
        calls.truncate("a", number)
    with pytest.raises(ValueError, match=f"window is too large: {number}"):
        calls.create("a", {"window": number})


def test_object_that_cannot_be_sent_is_named() -> None:
    with pytest.raises(TypeError, match=r"window: .*object"):
        Body({"window": object()})


def test_unknown_layout_is_sent_and_not_taken_for_linear() -> None:
    layouts: list[Any] = ["linear", "ring", "Ring"]

    paths = [calls.read("a", None, None, None, "packed", layout).request.path for layout in layouts]

    assert ["layout=" in path for path in paths] == [False, True, True]


@pytest.mark.parametrize("url", ["http://a:65536", "http://a:99999/b", "http://a/?b", "http://a#b", "http://a/b?"])
def test_url_that_calls_cannot_be_appended_to_raises_value_error(url: str) -> None:
    with pytest.raises(ValueError, match="the URL must be like"):
        check_url(url)


def test_async_client_outside_asyncio_says_what_it_needs() -> None:
    client = AsyncClient("http://127.0.0.1:1")
    session = client.session("a")

    for call in (client.status(), session.append(K, K), session.read()):
        with pytest.raises(RuntimeError, match="AsyncClient needs a running asyncio event loop"):
            call.send(None)
