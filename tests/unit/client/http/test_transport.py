"""Arguments of the client, and what it sends with every request."""

from typing import Any

import httpx
import numpy as np
import pytest

from hadakv_client import (
    Client,
    check_url,
)
from support.services.server_actions import (
    K,
    describe,
    miss,
    store,
)


def test_invalid_arguments_raise_before_anything_is_sent(connect: Any, scripted_server: Any) -> None:
    server = scripted_server()
    session = connect(server.url).session("a")

    with pytest.raises(TypeError, match="v must be float32 or float16 or bfloat16, not float64"):
        session.append(K, K.astype(np.float64))
    with pytest.raises(ValueError, match="k must be"):
        session.append(K[0, 0], K[0, 0])
    with pytest.raises(TypeError, match="integer"):
        session.append(K, K, position=1.5)

    assert server.exchanges == []


def test_token_is_sent_with_every_request(connect: Any, scripted_server: Any) -> None:
    server = scripted_server(miss, store)

    connect(server.url, token="s3cret").session("a").append(K, K, minimal=True)

    assert [exchange.headers["authorization"] for exchange in server.exchanges] == ["bearer s3cret"] * 2


def test_given_httpx_client_is_used_and_stays_open(scripted_server: Any) -> None:
    server = scripted_server(describe, describe)

    with httpx.Client(headers={"x-mine": "yes"}) as http:
        with Client(server.url, http=http) as client:
            client.session("a").info()
        with Client(server.url, http=http) as client:
            client.session("a").info()

    assert [exchange.headers["x-mine"] for exchange in server.exchanges] == ["yes", "yes"]


def test_proxies_of_the_environment_are_ignored(
    connect: Any, scripted_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    server = scripted_server(describe)

    assert connect(server.url, retries=0).session("a").info().session == "a"


@pytest.mark.parametrize("url", ["host:port", "http:8765", "unix:", "http://", "http://host:port", "ftp://host", ""])
def test_invalid_url_raises_value_error(connect: Any, url: str) -> None:
    with pytest.raises(ValueError, match=f"the URL must be like http://.* not '{url}'"):
        connect(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8765", "https://host/path", "unix:/path/to/socket", "[::1]:8765"])
def test_check_url_returns_a_valid_url_unchanged(url: str) -> None:
    assert check_url(url) == url


def test_user_and_password_in_the_url_are_sent(connect: Any, scripted_server: Any) -> None:
    server = scripted_server(describe)

    connect(server.url.replace("//", "//user:p%20w@")).session("a").info()

    assert server.exchanges[0].headers["authorization"] == "basic dxnlcjpwihc="  # the server lowers the case


@pytest.mark.parametrize("token", ["a\nb: c", "tökén"])
def test_invalid_token_raises_value_error(connect: Any, token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        connect(token=token)


@pytest.mark.parametrize("token", ["abc\n", "abc\r\n", " abc", "\tabc"])
def test_token_with_a_line_break_or_blank_is_explained(connect: Any, token: str) -> None:
    with pytest.raises(ValueError, match="begins or ends with a line break") as refused:
        connect(token=token)

    assert "abc" not in str(refused.value)
