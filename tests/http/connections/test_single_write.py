"""Responses that are sent in one write: same content as other responses, keep-alive, disconnected clients."""

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
# Large enough that a streamed response sends the tensor as a separate chunk.
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


@pytest.mark.hadakv_protocol
def test_small_response_arrives_in_one_read(server: RunningService) -> None:
    with connect(server.url) as connection:
        connection.sendall(request(uuid4().hex, BODY))

        arrived = connection.recv(1 << 20)

    head, _, body = arrived.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201 Created\r\n")
    assert f"content-length: {len(body)}".encode() in head


@pytest.mark.parametrize("x", [K, LONG], ids=["one token", "more"])
@pytest.mark.parametrize("codec", [None, {"kind": "float16"}])
def test_response_equals_that_of_a_streamed_response(
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
def test_connection_close_is_honoured(server: RunningService, more: list[str], version: str) -> None:
    with connect(server.url) as connection, connection.makefile("rb") as stream:
        connection.sendall(request(uuid4().hex, BODY, *more, version=version))

        status, headers, _ = answer(stream)

        assert status == b"HTTP/1.1 201 Created"
        assert headers["connection"] == "close"
        assert stream.read() == b""


def test_disconnected_clients_do_not_affect_others(server: RunningService) -> None:
    session = uuid4().hex
    for _ in range(20):
        with connect(server.url) as connection:
            connection.sendall(request(session, BODY))
            connection.shutdown(socket.SHUT_RDWR)

    with connect(server.url) as connection, connection.makefile("rb") as stream:
        connection.sendall(request(uuid4().hex, BODY))
        assert answer(stream)[0] == b"HTTP/1.1 201 Created"


def test_client_that_expects_100_continue_gets_it(server: RunningService) -> None:
    sent = request(uuid4().hex, BODY, "Expect: 100-continue")
    with connect(server.url) as connection, connection.makefile("rb") as stream:
        connection.sendall(sent[: -len(BODY)])
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert stream.readline() == b"\r\n"
        connection.sendall(BODY)

        assert answer(stream)[0] == b"HTTP/1.1 201 Created"


def test_disconnected_clients_are_not_logged(tmp_path: Path) -> None:
    """The connection notices some of the disconnects before the request does."""
    flags = ["--port", "0", "--disk-budget", "0", "--data-dir", str(tmp_path)]
    command = [sys.executable, "-m", "hadakv_service", *flags]
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
