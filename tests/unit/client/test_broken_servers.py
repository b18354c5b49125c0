"""Servers that hang up, stall, turn away or refuse early, over real sockets."""

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest

from hadakv_client import (
    AsyncClient,
    BodyTooLarge,
    Busy,
    Client,
    ConnectionLost,
    InternalError,
    PositionConflict,
    ProtocolError,
    Retries,
    SessionNotFound,
    Timeout,
)

SOON = Retries(limit=3, first_seconds=0.001)
K = np.ones((2, 2, 3, 64), np.float16)
LARGE = np.ones((1, 8, 4096, 512), np.float16)
INFO = {
    **{"session": "a", "kv_heads": 2, "head_dim": 64, "length": 0, "nbytes": 0, "raw_nbytes": 0, "tier": "memory"},
    **{"durability": "spill"},
    **dict.fromkeys(["codec", "window", "ttl_seconds", "expires"]),
    **{"layers": [], "created": "2026-01-02T03:04:05Z", "last_used": "2026-01-02T03:04:05Z"},
}


def slug(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"urn:hadakv:problem:{name}", "detail": "No.", **fields}


def store(exchange: Any, cut: int | None = None) -> None:
    """Answer an append as the service would, without what was stored."""
    message = exchange.message()
    position, tokens = message.get("position", 0), message["k"]["shape"][-2]
    placed = {"session": "a", "position": position, "tokens": tokens, "length": position + tokens}
    exchange.answer(200, placed, cut)


def describe(exchange: Any) -> None:
    exchange.body()
    exchange.answer(200, INFO)


def miss(exchange: Any) -> None:
    exchange.answer(404, slug("session-not-found"))


def busy(exchange: Any) -> None:
    exchange.body()
    exchange.answer(503, slug("busy"), retry_after=0)


def hang_up(exchange: Any) -> None:
    exchange.body()
    exchange.hang_up()


def hang_up_in_the_middle(exchange: Any) -> None:
    exchange.body(1 << 20)
    exchange.hang_up()


def hang_up_answering(exchange: Any) -> None:
    store(exchange, cut=-1)
    exchange.hang_up()


def stall(exchange: Any) -> None:
    exchange.body()


@pytest.mark.parametrize("fault", [hang_up, hang_up_answering, stall, busy])
def test_an_append_is_sent_again_to_the_same_position(connect: Any, rigged: Any, fault: Any) -> None:
    server = rigged(fault, store)
    client = connect(server.url, retries=SOON, timeout=httpx.Timeout(10, read=0.5))

    placed = client.session("a").append(K, K, position=7, minimal=True)

    first, second = server.exchanges
    assert placed.length == 10
    assert first.message() == second.message()
    assert second.message()["position"] == 7


def test_an_upload_that_breaks_off_is_sent_again_whole(connect: Any, rigged: Any) -> None:
    server = rigged(hang_up_in_the_middle, store)
    client = connect(server.url, retries=SOON)

    client.session("a").append(LARGE, LARGE, position=0, minimal=True)

    assert server.exchanges[1].message()["v"]["data"] == LARGE.tobytes()


@pytest.mark.parametrize(("fault", "error"), [(hang_up, ConnectionLost), (stall, Timeout)])
def test_an_append_to_wherever_the_end_is_is_not_sent_again(connect: Any, rigged: Any, fault: Any, error: Any) -> None:
    server = rigged(fault, store)
    client = connect(server.url, retries=SOON, timeout=httpx.Timeout(10, read=0.5))

    with pytest.raises(error, match=f"POST /sessions/a/kv at {server.url}: "):
        client.session("a").append(K, K, position="end")

    assert len(server.exchanges) == 1


def test_an_append_to_wherever_the_end_is_is_sent_again_if_the_service_was_busy(connect: Any, rigged: Any) -> None:
    server = rigged(busy, busy, store)
    client = connect(server.url, retries=SOON)

    client.session("a").append(K, K, position="end", minimal=True)

    assert len(server.exchanges) == 3


def test_a_service_that_stays_busy_is_given_up(connect: Any, rigged: Any) -> None:
    server = rigged(busy, busy, busy, busy, store)
    client = connect(server.url, retries=SOON)

    with pytest.raises(Busy, match="busy"):
        client.session("a").append(K, K, position=0)

    assert len(server.exchanges) == 4


def test_a_failure_of_the_service_is_not_tried_again(connect: Any, rigged: Any) -> None:
    server = rigged(lambda exchange: exchange.answer(500, slug("internal-error")))
    client = connect(server.url, retries=SOON)

    with pytest.raises(InternalError):
        client.session("a").info()

    assert len(server.exchanges) == 1


def test_where_nothing_listens_the_connection_is_lost_before_anything_was_sent(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    client = connect(url, retries=SOON)

    with pytest.raises(ConnectionLost) as lost:
        client.session("a").append(K, K, position="end")

    assert not lost.value.sent
    assert not client.healthy()
    assert not client.ready()


def test_a_service_that_starts_late_is_found(connect: Any, rigged: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    servers = []

    def start_the_server_and_be_lucky() -> float:
        servers.append(rigged(store, port=port))
        return 0.0

    client = connect(f"http://127.0.0.1:{port}", retries=Retries(1, 0.001, random=start_the_server_and_be_lucky))

    client.session("a").append(K, K, position="end", minimal=True)

    assert servers[0].calls == ["POST /sessions/a/kv"]


def test_a_delete_whose_answer_was_lost_is_done_when_nothing_is_left_to_delete(connect: Any, rigged: Any) -> None:
    server = rigged(hang_up, miss)

    connect(server.url, retries=SOON).session("a").delete()

    assert server.calls == ["DELETE /sessions/a"] * 2


def test_a_delete_of_what_never_was_is_refused(connect: Any, rigged: Any) -> None:
    server = rigged(busy, miss)

    with pytest.raises(SessionNotFound):
        connect(server.url, retries=SOON).session("a").delete()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a reset takes back what was received before it")
def test_a_refusal_before_the_body_was_read_is_that_refusal(rigged: Any) -> None:
    # asyncio drops what was received before a reset, so this is for the synchronous client alone.
    def refuse_and_hang_up(exchange: Any) -> None:
        exchange.answer(413, slug("body-too-large", limit=5), connection="close")
        exchange.hang_up()

    server = rigged(refuse_and_hang_up)

    with Client(server.url, retries=SOON) as client, pytest.raises(BodyTooLarge) as refused:
        client.session("a").append(LARGE, LARGE, position=0)

    assert refused.value.limit == 5
    assert len(server.exchanges) == 1


def test_a_refusal_before_the_body_was_read_by_a_patient_server_is_that_refusal(connect: Any, rigged: Any) -> None:
    def refuse_and_read_on(exchange: Any) -> None:
        exchange.answer(413, slug("body-too-large", limit=5))
        exchange.body()

    server = rigged(refuse_and_read_on)

    with pytest.raises(BodyTooLarge):
        connect(server.url, retries=SOON).session("a").append(LARGE, LARGE, position=0)


def test_the_end_is_asked_for_once_and_then_known(connect: Any, rigged: Any) -> None:
    server = rigged(miss, store, store, store)
    session = connect(server.url).session("a")

    for _ in range(3):
        session.append(K, K, minimal=True)

    assert server.calls == ["GET /sessions/a"] + ["POST /sessions/a/kv"] * 3
    assert [exchange.message()["position"] for exchange in server.exchanges[1:]] == [0, 3, 6]


def test_the_end_is_learned_from_the_session_s_creation(connect: Any, rigged: Any) -> None:
    server = rigged(describe, store)
    session = connect(server.url).session("a")

    session.create()
    session.append(K, K, minimal=True)

    assert server.calls == ["PUT /sessions/a", "POST /sessions/a/kv"]


def test_the_end_is_asked_for_again_after_a_conflict(connect: Any, rigged: Any) -> None:
    def conflict(exchange: Any) -> None:
        exchange.body()
        exchange.answer(409, slug("position-conflict", length=6))

    def have_six(exchange: Any) -> None:
        exchange.answer(200, INFO | {"layers": [{"layer": layer, "start": 0, "length": 6} for layer in range(2)]})

    server = rigged(miss, conflict, have_six, store)
    session = connect(server.url).session("a")

    with pytest.raises(PositionConflict) as refused:
        session.append(K, K)
    placed = session.append(K, K, minimal=True)

    assert refused.value.length == 6
    assert placed.position == 6


def test_the_end_is_asked_for_again_after_nobody_knows_what_was_stored(connect: Any, rigged: Any) -> None:
    server = rigged(miss, hang_up, miss, store)
    session = connect(server.url, retries=0).session("a")

    with pytest.raises(ConnectionLost):
        session.append(K, K)
    session.append(K, K, minimal=True)

    assert server.calls == ["GET /sessions/a", "POST /sessions/a/kv"] * 2


def test_the_end_is_asked_for_again_after_an_append_was_cancelled(rigged: Any) -> None:
    server = rigged(miss, stall, miss, store)

    async def cancel_and_append() -> None:
        async with AsyncClient(server.url) as client:
            session = client.session("a")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(session.append(K, K), 0.3)
            await session.append(K, K, minimal=True)

    asyncio.run(cancel_and_append())

    assert server.calls == ["GET /sessions/a", "POST /sessions/a/kv"] * 2


def test_nothing_is_asked_for_where_the_position_is_given(connect: Any, rigged: Any) -> None:
    server = rigged(store, store)
    session = connect(server.url).session("a")

    session.append(K, K, position=0, minimal=True)
    session.append(K, K, position=3, minimal=True)

    assert server.calls == ["POST /sessions/a/kv"] * 2


def test_what_can_never_be_sent_is_not(connect: Any, rigged: Any) -> None:
    server = rigged()
    session = connect(server.url).session("a")

    with pytest.raises(TypeError, match="v must be float32 or float16 or bfloat16, not float64"):
        session.append(K, K.astype(np.float64))
    with pytest.raises(ValueError, match="k must be"):
        session.append(K[0, 0], K[0, 0])
    with pytest.raises(TypeError, match="integer"):
        session.append(K, K, position=1.5)

    assert server.exchanges == []


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", ProtocolError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 6\r\n\r\n<html>", InternalError),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ConnectionLost),
    ],
    ids=["text", "chunked text", "redirection", "gateway", "another protocol"],
)
def test_another_server_is_recognised(connect: Any, rigged: Any, raw: bytes, error: type[Exception]) -> None:
    def speak_and_hang_up(exchange: Any) -> None:
        exchange.send(raw)
        exchange.hang_up()

    server = rigged(speak_and_hang_up)

    with pytest.raises(error):
        connect(server.url, retries=0).session("a").info()


def test_an_answer_in_chunks_is_put_together(connect: Any, rigged: Any) -> None:
    body = msgpack.packb(INFO)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:50], body[50:]))
    server = rigged(
        lambda exchange: exchange.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    )

    assert connect(server.url).session("a").info().session == "a"


def test_the_token_goes_with_every_request(connect: Any, rigged: Any) -> None:
    server = rigged(miss, store)

    connect(server.url, token="s3cret").session("a").append(K, K, minimal=True)

    assert [exchange.headers["authorization"] for exchange in server.exchanges] == ["bearer s3cret"] * 2


def test_an_httpx_client_of_the_caller_s_is_used_and_left_open(rigged: Any) -> None:
    server = rigged(describe, describe)

    with httpx.Client(headers={"x-mine": "yes"}) as http:
        with Client(server.url, http=http) as client:
            client.session("a").info()
        with Client(server.url, http=http) as client:
            client.session("a").info()

    assert [exchange.headers["x-mine"] for exchange in server.exchanges] == ["yes", "yes"]


def test_proxies_of_the_environment_are_not_asked(connect: Any, rigged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    server = rigged(describe)

    assert connect(server.url, retries=0).session("a").info().session == "a"


@pytest.mark.parametrize("url", ["127.0.0.1:8765", "unix:", "http://", "http://host:port", "ftp://host", ""])
def test_an_address_that_is_no_url_is_refused(connect: Any, url: str) -> None:
    with pytest.raises(ValueError, match=f"the URL must be like http://.* not '{url}'"):
        connect(url)


@pytest.mark.parametrize("token", ["a\nb: c", "tökén"])
def test_a_token_that_has_no_place_in_a_header_is_refused(connect: Any, token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        connect(token=token)
