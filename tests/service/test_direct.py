"""Large bodies on a raw connection: requests one behind another, in pieces, asked for, and broken off."""

import socket
from collections.abc import Iterator
from typing import BinaryIO, cast
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import msgpack
import numpy as np
import pytest

from contract import MSGPACK, Json, append_body
from hadakv_service.spawn import RunningService

K = np.random.default_rng(11).standard_normal((2, 4, 300, 128)).astype(np.float16)
BODY = cast(bytes, msgpack.packb(append_body(K, K)))
SMALL = cast(bytes, msgpack.packb(append_body(K[:, :, :1], K[:, :, :1])))


@pytest.fixture
def connection(server: RunningService) -> Iterator[socket.socket]:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port or 80), timeout=30) as connected:
        yield connected


def head(session: str, body: bytes, *more: str) -> bytes:
    lines = [f"POST /sessions/{session}/kv HTTP/1.1", "Host: x", f"Content-Type: {MSGPACK}"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", *more, "", ""]).encode()


def answer(stream: BinaryIO) -> tuple[int, Json]:
    """The next answer on a connection: its status, and its body if that is msgpack."""
    status, length = int(stream.readline().split()[1]), 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.lower().partition(b":")
        length = int(value) if name == b"content-length" else length
    content = stream.read(length)
    return status, msgpack.unpackb(content) if status in (200, 201) else {}


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
