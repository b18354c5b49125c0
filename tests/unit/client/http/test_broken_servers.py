"""Servers that do not listen, respond early, or do not speak the protocol of the service; over real sockets."""

import socket
import sys
from typing import Any

import msgpack
import pytest

from hadakv_client import (
    BodyTooLarge,
    ConnectionLost,
    InternalError,
    ProtocolError,
)
from support.services.server_actions import (
    FAST_RETRIES,
    INFO,
    LARGE,
    K,
    problem_document,
)


def test_refused_connection_raises_connection_lost(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    client = connect(url, retries=FAST_RETRIES)

    with pytest.raises(ConnectionLost) as lost:
        client.session("a").append(K, K, position="end")

    assert not lost.value.sent
    assert not client.healthy()
    assert not client.ready()


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems a reset discards received data")
def test_rejection_before_the_body_is_read_is_raised(connect: Any, scripted_server: Any) -> None:
    def reject_and_hang_up(exchange: Any) -> None:
        exchange.respond(413, problem_document("body-too-large", limit=5), connection="close")
        exchange.hang_up()

    server = scripted_server(reject_and_hang_up)

    with pytest.raises(BodyTooLarge) as raised:
        connect(server.url, retries=FAST_RETRIES).session("a").append(LARGE, LARGE, position=0)

    assert raised.value.limit == 5
    assert len(server.exchanges) == 1


def test_rejection_while_the_body_is_sent_is_raised(connect: Any, scripted_server: Any) -> None:
    def reject_and_read_body(exchange: Any) -> None:
        exchange.respond(413, problem_document("body-too-large", limit=5))
        exchange.body()

    server = scripted_server(reject_and_read_body)

    with pytest.raises(BodyTooLarge):
        connect(server.url, retries=FAST_RETRIES).session("a").append(LARGE, LARGE, position=0)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", ProtocolError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 900000000000000000\r\n\r\nhello", ProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nhello", ProtocolError),
        (b"HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 6\r\n\r\n<html>", InternalError),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ConnectionLost),
    ],
    ids=["text", "chunked text", "huge length", "length beyond 64 bits", "redirection", "gateway", "another protocol"],
)
def test_response_of_another_server_raises_an_error(
    connect: Any, scripted_server: Any, raw: bytes, error: type[Exception]
) -> None:
    def send_and_hang_up(exchange: Any) -> None:
        exchange.send(raw)
        exchange.hang_up()

    server = scripted_server(send_and_hang_up)

    with pytest.raises(error):
        connect(server.url, retries=0).session("a").info()


def test_chunked_response_is_joined(connect: Any, scripted_server: Any) -> None:
    body = msgpack.packb(INFO)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:50], body[50:]))
    server = scripted_server(
        lambda exchange: exchange.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    )

    assert connect(server.url).session("a").info().session == "a"
