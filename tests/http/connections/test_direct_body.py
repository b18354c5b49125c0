"""Request bodies on a raw connection: pipelined, in pieces, after 100 Continue, incomplete; Upgrade offers; resets."""

import socket
import struct
from collections.abc import Iterator
from typing import BinaryIO, cast
from uuid import uuid4

import httpx
import msgpack
import numpy as np
import pytest

from hadakv_service.testing import RunningService, running_service
from support.contract import MSGPACK, Json, append_body, connect

K = np.random.default_rng(11).standard_normal((2, 4, 300, 128)).astype(np.float16)
BODY = cast(bytes, msgpack.packb(append_body(K, K)))
SMALL = cast(bytes, msgpack.packb(append_body(K[:, :, :1], K[:, :, :1])))


@pytest.fixture
def connection(server: RunningService) -> Iterator[socket.socket]:
    with connect(server.url) as connected:
        yield connected


def head(session: str, body: bytes, *more: str) -> bytes:
    lines = [f"POST /sessions/{session}/kv HTTP/1.1", "Host: localhost", f"Content-Type: {MSGPACK}"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", *more, "", ""]).encode()


def response(stream: BinaryIO) -> tuple[int, Json]:
    """Read the next response. Return its status, and its body if that is msgpack."""
    status, length = int(stream.readline().split()[1]), 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.lower().partition(b":")
        length = int(value) if name == b"content-length" else length
    content = stream.read(length)
    return status, msgpack.unpackb(content) if status in (200, 201) else {}


def reset(connection: socket.socket) -> None:
    """Reset a connection instead of closing it in order."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_pipelined_requests_get_responses_in_order(connection: socket.socket) -> None:
    session, stream = uuid4().hex, connection.makefile("rb")
    bodies = [BODY, SMALL, BODY, BODY]

    connection.sendall(b"".join(head(session, body) + body for body in bodies))
    responses = [response(stream) for _ in bodies]
    stream.close()

    assert [status for status, _ in responses] == [201, 200, 200, 200]
    assert [body["length"] for _, body in responses] == [300, 301, 601, 901]
    assert responses[0][1]["k"] == responses[3][1]["k"]


def test_body_in_pieces_is_received(connection: socket.socket) -> None:
    stream, pieces = connection.makefile("rb"), [BODY[i : i + 77_777] for i in range(0, len(BODY), 77_777)]

    connection.sendall(head(uuid4().hex, BODY))
    for piece in pieces:
        connection.sendall(piece)
    status, body = response(stream)
    stream.close()

    assert (status, body["length"]) == (201, 300)


def test_client_that_expects_100_continue_gets_it(connection: socket.socket) -> None:
    stream = connection.makefile("rb")

    connection.sendall(head(uuid4().hex, BODY, "Expect: 100-continue"))
    asked, _ = response(stream)
    connection.sendall(BODY)
    status, body = response(stream)
    stream.close()

    assert asked == 100
    assert (status, body["length"]) == (201, 300)


@pytest.mark.parametrize("spaces", [" ", "\t", " \t "], ids=repr)
@pytest.mark.parametrize("body", [SMALL, BODY], ids=["small", "large"])
def test_spaces_after_header_values_are_stripped(connection: socket.socket, body: bytes, spaces: str) -> None:
    stream = connection.makefile("rb")
    lines = head(uuid4().hex, body, "Expect: 100-continue").split(b"\r\n")
    spaced = [line + spaces.encode() if b": " in line else line for line in lines]

    connection.sendall(b"\r\n".join(spaced))
    asked, _ = response(stream)
    connection.sendall(body)
    status, _ = response(stream)
    stream.close()

    assert (asked, status) == (100, 201)


@pytest.mark.parametrize("sent", [10, 70_000, 400_000, len(BODY) - 1])
@pytest.mark.parametrize("half", [True, False], ids=["half closed", "closed"])
def test_incomplete_body_stores_nothing(
    server: RunningService, connection: socket.socket, sent: int, half: bool
) -> None:
    session = uuid4().hex

    connection.sendall(head(session, BODY) + BODY[:sent])
    connection.shutdown(socket.SHUT_WR if half else socket.SHUT_RDWR)
    if half:
        # The service closes its side once it knows that no more data will come.
        while connection.recv(1 << 16):
            pass

    assert httpx.get(f"{server.url}/sessions/{session}").status_code == 404
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_connection_continues_after_a_rejected_body(connection: socket.socket) -> None:
    stream, session = connection.makefile("rb"), uuid4().hex
    wrong = head(session, BODY).replace(MSGPACK.encode(), b"text/plain")

    connection.sendall(wrong + BODY + head(session, BODY) + BODY)
    refused, _ = response(stream)
    status, body = response(stream)
    stream.close()

    assert refused == 415
    assert (status, body["length"]) == (201, 300)


# Offers to change to another protocol, which a server may ignore

H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
WEBSOCKET = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
OFFERS = pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])


@pytest.mark.hadakv_protocol
@OFFERS
@pytest.mark.parametrize("pace", [1, 100, 1 << 30], ids=["byte by byte", "in pieces", "at once"])
def test_upgrade_offer_is_ignored(connection: socket.socket, offer: tuple[str, ...], pace: int) -> None:
    session, stream = uuid4().hex, connection.makefile("rb")
    requests = b"".join(head(session, SMALL, *more) + SMALL for more in (offer, (), offer, offer))

    for start in range(0, len(requests), pace):
        connection.sendall(requests[start : start + pace])
    responses = [response(stream) for _ in range(4)]
    stream.close()

    assert [(status, body["length"]) for status, body in responses] == [(201, 1), (200, 2), (200, 3), (200, 4)]


@pytest.mark.hadakv_protocol
@OFFERS
@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)], ids=["", "100-continue"])
def test_large_body_after_upgrade_offer_is_received(
    connection: socket.socket, offer: tuple[str, ...], expect: tuple[str, ...]
) -> None:
    session, stream = uuid4().hex, connection.makefile("rb")

    connection.sendall(head(session, BODY, *offer, *expect))
    asked = [response(stream)[0] for _ in expect]
    connection.sendall(BODY + head(session, BODY, *offer) + BODY)
    responses = [response(stream) for _ in range(2)]
    stream.close()

    assert asked == [100] * len(expect)
    assert [(status, body["length"]) for status, body in responses] == [(201, 300), (200, 600)]


@pytest.mark.hadakv_protocol
@OFFERS
def test_chunked_body_after_upgrade_offer_is_not_a_request(connection: socket.socket, offer: tuple[str, ...]) -> None:
    session, stream = uuid4().hex, connection.makefile("rb")
    hidden = f"DELETE /sessions/{session} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    chunked = head(session, b"", *offer).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")

    connection.sendall(head(session, SMALL) + SMALL)
    connection.sendall(chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden))
    connection.sendall(head(session, SMALL) + SMALL)
    responses = [response(stream) for _ in range(3)]
    stream.close()

    assert [status for status, _ in responses] == [201, 400, 200]
    assert responses[2][1]["length"] == 2


@pytest.mark.hadakv_protocol
def test_connect_method_is_rejected(connection: socket.socket) -> None:
    connection.sendall(
        b"CONNECT x:80 HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    with connection.makefile("rb") as stream:
        everything = stream.read()

    assert everything.startswith(b"HTTP/1.1 400 ")
    assert everything.count(b"HTTP/1.1") == 1


# Connections that are reset while responses are sent


@pytest.mark.parametrize("requests", [1, 2, 3])
def test_reset_during_responses_logs_nothing(capfd: pytest.CaptureFixture[str], requests: int) -> None:
    k = np.zeros((8, 8, 1024, 128), np.float16)
    read = b"GET /sessions/a/kv?form=float32 HTTP/1.1\r\nHost: localhost\r\n\r\n"

    with running_service() as service:
        httpx.post(
            f"{service.url}/sessions/a/kv", content=msgpack.packb(append_body(k, k)), headers={"content-type": MSGPACK}
        )
        for received in (100, 1 << 20, 8 << 20):
            with connect(service.url) as connection:
                connection.sendall(read * requests)
                connection.recv(received, socket.MSG_WAITALL)
                reset(connection)
        ready = httpx.get(f"{service.url}/readyz").status_code

    assert ready == 200
    assert capfd.readouterr().err == ""
