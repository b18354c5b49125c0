"""Answers of small appends: in one write, no different from those that go the ordinary way, ends of connections."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

import msgpack
import numpy as np
import pytest

from hadakv_service.testing import RunningService
from support.contract import MSGPACK, Json, append_body, connect

K = np.random.default_rng(12).standard_normal((2, 4, 1, 128)).astype(np.float16)
BODY = cast(bytes, msgpack.packb(append_body(K, K)))
# Large enough for a piece of its own on the ordinary way.
LONG = np.random.default_rng(12).standard_normal((1, 1, 60, 256)).astype(np.float16)


def request(session: str, body: bytes, *more: str, version: str = "1.1") -> bytes:
    lines = [f"POST /sessions/{session}/kv HTTP/{version}", "Host: localhost", f"Content-Type: {MSGPACK}"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", *more, "", ""]).encode() + body


def answer(stream: BinaryIO) -> tuple[bytes, dict[str, str], Json]:
    status, headers = stream.readline().strip(), {}
    while (line := stream.readline().strip().decode()) != "":
        name, _, value = line.partition(": ")
        headers[name] = value
    return status, headers, msgpack.unpackb(stream.read(int(headers["content-length"])))


def test_a_small_answer_arrives_as_one(server: RunningService) -> None:
    with connect(server.url) as connection:
        connection.sendall(request(uuid4().hex, BODY))

        arrived = connection.recv(1 << 20)

    head, _, body = arrived.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201 Created\r\n")
    assert f"content-length: {len(body)}".encode() in head


@pytest.mark.parametrize("x", [K, LONG], ids=["one token", "more"])
@pytest.mark.parametrize("codec", [None, {"kind": "float16"}])
def test_the_answer_is_that_of_the_ordinary_way(
    server: RunningService, x: "np.ndarray[Any, Any]", codec: Json | None
) -> None:
    body = cast(bytes, msgpack.packb(append_body(x, x) | ({"codec": codec} if codec else {})))
    session, answers = uuid4().hex, []
    with connect(server.url) as connection, connection.makefile("rb") as stream:
        for i, more in enumerate([[], ["Prefer: none"], [], ["Prefer: none"]]):
            connection.sendall(request(f"{session}-{i % 2}", body, *more))
            answers.append(answer(stream))

    for (status, headers, told), (status_too, headers_too, told_too) in zip(answers[::2], answers[1::2], strict=True):
        assert status == status_too
        assert headers.keys() == headers_too.keys() == {"date", "content-type", "content-length", "x-request-id"}
        assert headers["content-type"] == headers_too["content-type"]
        assert told | {"session": ""} == told_too | {"session": ""}


@pytest.mark.parametrize(("more", "version"), [(["Connection: close"], "1.1"), ([], "1.0")])
def test_a_connection_that_is_to_end_ends_with_the_answer(
    server: RunningService, more: list[str], version: str
) -> None:
    with connect(server.url) as connection, connection.makefile("rb") as stream:
        connection.sendall(request(uuid4().hex, BODY, *more, version=version))

        status, headers, _ = answer(stream)

        assert status == b"HTTP/1.1 201 Created"
        assert headers["connection"] == "close"
        assert stream.read() == b""


def test_nobody_is_answered_who_has_left_and_others_are(server: RunningService) -> None:
    session = uuid4().hex
    for _ in range(20):
        with connect(server.url) as connection:
            connection.sendall(request(session, BODY))
            connection.shutdown(socket.SHUT_RDWR)

    with connect(server.url) as connection, connection.makefile("rb") as stream:
        connection.sendall(request(uuid4().hex, BODY))
        assert answer(stream)[0] == b"HTTP/1.1 201 Created"


def test_a_body_asked_for_first_is_answered_as_ever(server: RunningService) -> None:
    sent = request(uuid4().hex, BODY, "Expect: 100-continue")
    with connect(server.url) as connection, connection.makefile("rb") as stream:
        connection.sendall(sent[: -len(BODY)])
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert stream.readline() == b"\r\n"
        connection.sendall(BODY)

        assert answer(stream)[0] == b"HTTP/1.1 201 Created"


def test_clients_that_leave_are_nothing_to_log(tmp_path: Path) -> None:
    """Some are found out by the connection, and only then by the request."""
    command = [sys.executable, "-m", "hadakv_service", "--port", "0", "--disk-budget", "0"]
    with (
        (tmp_path / "log").open("w+b") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        url = next(part for part in process.stdout.readline().split(", ") if part.startswith("http"))
        for i in range(15):
            connections = [connect(url) for _ in range(32)]
            for j, connection in enumerate(connections):
                connection.sendall(request(f"s-{i}-{j}", BODY))
            connections[i].recv(1)
            for connection in connections:
                connection.close()
        with connect(url) as connection, connection.makefile("rb") as stream:
            connection.sendall(request("last", BODY))
            answer(stream)
        process.terminate()
        process.wait(60)
        log.seek(0)
        said = log.read()

    assert said == b""
