"""Checks of session ids, codecs and arrays before anything is sent."""

from typing import Any

import numpy as np
import pytest

from hadakv_client import AsyncClient, Client, Codec, UnsupportedCodec, check_session_id
from hadakv_client.http import calls
from hadakv_client.http.arguments import integer, session_codec

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
