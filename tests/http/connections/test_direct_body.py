"""A raw connection: bodies one behind another, in pieces, asked for, broken off; offers to upgrade; broken answers."""

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


def answer(stream: BinaryIO) -> tuple[int, Json]:
    """The next answer on a connection: its status, and its body if that is msgpack."""
    status, length = int(stream.readline().split()[1]), 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.lower().partition(b":")
        length = int(value) if name == b"content-length" else length
    content = stream.read(length)
    return status, msgpack.unpackb(content) if status in (200, 201) else {}


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other side sees it broken, not ended."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_requests_sent_one_behind_another_are_answered_in_turn(connection: socket.socket) -> None:
    session, stream = uuid4().hex, connection.makefile("rb")
    bodies = [BODY, SMALL, BODY, BODY]

    connection.sendall(b"".join(head(session, body) + body for body in bodies))
    answers = [answer(stream) for _ in bodies]
    stream.close()

    assert [status for status, _ in answers] == [201, 200, 200, 200]
    assert [body["length"] for _, body in answers] == [300, 301, 601, 901]
    assert answers[0][1]["k"] == answers[3][1]["k"]


def test_a_body_that_comes_in_pieces_is_taken_whole(connection: socket.socket) -> None:
    stream, pieces = connection.makefile("rb"), [BODY[i : i + 77_777] for i in range(0, len(BODY), 77_777)]

    connection.sendall(head(uuid4().hex, BODY))
    for piece in pieces:
        connection.sendall(piece)
    status, body = answer(stream)
    stream.close()

    assert (status, body["length"]) == (201, 300)


def test_a_sender_that_waits_to_be_asked_is_asked(connection: socket.socket) -> None:
    stream = connection.makefile("rb")

    connection.sendall(head(uuid4().hex, BODY, "Expect: 100-continue"))
    asked, _ = answer(stream)
    connection.sendall(BODY)
    status, body = answer(stream)
    stream.close()

    assert asked == 100
    assert (status, body["length"]) == (201, 300)


@pytest.mark.parametrize("spaces", [" ", "\t", " \t "], ids=repr)
@pytest.mark.parametrize("body", [SMALL, BODY], ids=["small", "large"])
def test_spaces_after_a_headers_value_are_no_part_of_it(connection: socket.socket, body: bytes, spaces: str) -> None:
    stream = connection.makefile("rb")
    lines = head(uuid4().hex, body, "Expect: 100-continue").split(b"\r\n")
    spaced = [line + spaces.encode() if b": " in line else line for line in lines]

    connection.sendall(b"\r\n".join(spaced))
    asked, _ = answer(stream)
    connection.sendall(body)
    status, _ = answer(stream)
    stream.close()

    assert (asked, status) == (100, 201)


@pytest.mark.parametrize("sent", [10, 70_000, 400_000, len(BODY) - 1])
@pytest.mark.parametrize("half", [True, False], ids=["half closed", "closed"])
def test_a_body_that_breaks_off_stores_nothing(
    server: RunningService, connection: socket.socket, sent: int, half: bool
) -> None:
    session = uuid4().hex

    connection.sendall(head(session, BODY) + BODY[:sent])
    connection.shutdown(socket.SHUT_WR if half else socket.SHUT_RDWR)
    if half:
        # Only once the service has closed its side does it know that no more will come.
        while connection.recv(1 << 16):
            pass

    assert httpx.get(f"{server.url}/sessions/{session}").status_code == 404
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_a_connection_whose_large_body_was_refused_goes_on(connection: socket.socket) -> None:
    stream, session = connection.makefile("rb"), uuid4().hex
    wrong = head(session, BODY).replace(MSGPACK.encode(), b"text/plain")

    connection.sendall(wrong + BODY + head(session, BODY) + BODY)
    refused, _ = answer(stream)
    status, body = answer(stream)
    stream.close()

    assert refused == 415
    assert (status, body["length"]) == (201, 300)


# Offers to go on in another protocol, which a server may pass over

H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
WEBSOCKET = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
OFFERS = pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])


@OFFERS
@pytest.mark.parametrize("pace", [1, 100, 1 << 30], ids=["byte by byte", "in pieces", "at once"])
def test_an_offered_upgrade_changes_nothing_about_a_request(
    connection: socket.socket, offer: tuple[str, ...], pace: int
) -> None:
    session, stream = uuid4().hex, connection.makefile("rb")
    requests = b"".join(head(session, SMALL, *more) + SMALL for more in (offer, (), offer, offer))

    for start in range(0, len(requests), pace):
        connection.sendall(requests[start : start + pace])
    answers = [answer(stream) for _ in range(4)]
    stream.close()

    assert [(status, body["length"]) for status, body in answers] == [(201, 1), (200, 2), (200, 3), (200, 4)]


@OFFERS
@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)], ids=["", "waiting to be asked"])
def test_a_large_body_after_an_offered_upgrade_is_taken_whole(
    connection: socket.socket, offer: tuple[str, ...], expect: tuple[str, ...]
) -> None:
    session, stream = uuid4().hex, connection.makefile("rb")

    connection.sendall(head(session, BODY, *offer, *expect))
    asked = [answer(stream)[0] for _ in expect]
    connection.sendall(BODY + head(session, BODY, *offer) + BODY)
    answers = [answer(stream) for _ in range(2)]
    stream.close()

    assert asked == [100] * len(expect)
    assert [(status, body["length"]) for status, body in answers] == [(201, 300), (200, 600)]


@OFFERS
def test_a_body_in_chunks_after_an_offered_upgrade_is_no_request(
    connection: socket.socket, offer: tuple[str, ...]
) -> None:
    session, stream = uuid4().hex, connection.makefile("rb")
    hidden = f"DELETE /sessions/{session} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    chunked = head(session, b"", *offer).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")

    connection.sendall(head(session, SMALL) + SMALL)
    connection.sendall(chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden))
    connection.sendall(head(session, SMALL) + SMALL)
    answers = [answer(stream) for _ in range(3)]
    stream.close()

    assert [status for status, _ in answers] == [201, 400, 200]
    assert answers[2][1]["length"] == 2


def test_a_request_to_connect_elsewhere_is_refused_and_ends_the_connection(connection: socket.socket) -> None:
    connection.sendall(
        b"CONNECT x:80 HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    with connection.makefile("rb") as stream:
        everything = stream.read()

    assert everything.startswith(b"HTTP/1.1 400 ")
    assert everything.count(b"HTTP/1.1") == 1


# Connections that break while answers are sent


@pytest.mark.parametrize("requests", [1, 2, 3])
def test_a_connection_that_breaks_under_its_answers_is_no_error(
    capfd: pytest.CaptureFixture[str], requests: int
) -> None:
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
