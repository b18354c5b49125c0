"""Limits on concurrent requests, on memory for bodies, on connections, and on open files."""

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import msgpack
import numpy as np
import pytest
from starlette.requests import Request

from hadakv_service.errors import Busy
from hadakv_service.http.request_body import SMALL_BODY_NBYTES, BodyReader
from hadakv_service.testing import RunningService, running_service
from support.assertions import PACKED
from support.contract import MSGPACK, PROBLEM, Answer, Caller, append_body, connect, status_line

MOST = 1 << 20
LARGE: bytes = msgpack.packb(append_body(*[np.ones((2, 4, 300, 64), np.float16)] * 2))


@contextmanager
def half_sent(service: RunningService, session: str, body: bytes, part: int = 1000) -> Iterator[socket.socket]:
    """Yield a connection on which an append is open: a part of its body is missing."""
    lines = [f"POST /sessions/{session}/kv HTTP/1.1", "Host: localhost", f"Content-Type: {MSGPACK}"]
    with connect(service.url) as connection:
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        connection.sendall(head.encode() + body[:part])
        # When this response arrives, the service has read the partial body as well.
        httpx.get(f"{service.url}/healthz")
        yield connection


def response_of(service: RunningService, path: str) -> Answer:
    with Caller(service.url) as caller:
        return caller.get(path)


# Requests


def test_request_above_the_limit_gets_503(session: str) -> None:
    with running_service("--max-requests", "2") as service:
        with half_sent(service, session, PACKED) as one, half_sent(service, session, LARGE):
            busy = response_of(service, "/sessions")
            alive = response_of(service, "/healthz")
            one.sendall(PACKED[1000:])
            done = status_line(one)
            then = response_of(service, "/sessions")
        with half_sent(service, session, PACKED), half_sent(service, session, PACKED):
            again = response_of(service, "/sessions")

    assert busy.problem(503, "busy")["detail"]
    assert int(busy.headers["retry-after"]) >= 1
    assert (alive.status, done, then.status) == (200, b"HTTP/1.1 201 Created", 200)
    assert again.status == 503


# Bodies


@pytest.fixture(scope="module")
def narrow() -> Iterator[RunningService]:
    """Run a service that accepts 1 MiB of bodies in total."""
    with running_service("--max-body", str(MOST), "--max-body-memory", str(MOST)) as service:
        yield service


@pytest.mark.parametrize("part", [0, 1000, 200_000])
def test_body_memory_is_reserved_by_content_length(narrow: RunningService, session: str, part: int) -> None:
    with Caller(narrow.url) as caller:
        path = f"/sessions/{session}-other/kv"
        with half_sent(narrow, session, LARGE + bytes(MOST - len(LARGE)), part):
            refused = caller.send("POST", path, LARGE)
            in_chunks = caller.http.post(path, content=iter([LARGE]), headers={"content-type": MSGPACK})
            small = caller.send("POST", path, PACKED)
            caller.delete(f"/sessions/{session}-other")
        # The connection is closed, so its reservation is released.
        caller.get("/healthz")
        after = caller.send("POST", path, LARGE)

    refused.problem(503, "busy")
    assert "retry-after" in refused.headers
    assert (in_chunks.status_code, small.status, after.status) == (503, 201, 201)


def test_chunked_body_reserves_memory_as_it_arrives() -> None:
    reader = BodyReader(limit=1000 * SMALL_BODY_NBYTES, memory_limit=10 * SMALL_BODY_NBYTES)

    async def read(chunks: int, pause: asyncio.Event) -> int:
        """Read a body of several chunks. Pause before the last one."""
        left = chunks

        async def receive() -> dict[str, Any]:
            nonlocal left
            left -= 1
            if not left:
                await pause.wait()
            return {"type": "http.request", "body": bytes(SMALL_BODY_NBYTES), "more_body": left > 0}

        async with reader.read(Request({"type": "http", "headers": []}, receive)) as body:
            return len(body)

    async def scenario() -> list[int]:
        pause, none = asyncio.Event(), asyncio.Event()
        none.set()
        first = asyncio.create_task(read(7, pause))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await read(5, none)
        fitting = await read(4, none)
        pause.set()
        return [fitting, await first, await read(10, none)]

    assert asyncio.run(scenario()) == [4 * SMALL_BODY_NBYTES, 7 * SMALL_BODY_NBYTES, 10 * SMALL_BODY_NBYTES]


def test_body_memory_is_released_after_each_request(narrow: RunningService, session: str) -> None:
    with Caller(narrow.url) as caller:
        statuses = {caller.send("POST", f"/sessions/{session}/kv", LARGE).status for _ in range(20)}
        broken = {caller.send("POST", "/encode", bytes(MOST)).status for _ in range(5)}
        wrong = {caller.send("POST", f"/sessions/{session}/kv", LARGE[:-1] + b"!!").status for _ in range(5)}

    assert (statuses, broken, wrong) == ({201, 200}, {400}, {400})


# Connections


@pytest.mark.hadakv_protocol
def test_connection_idle_for_longest_is_closed() -> None:
    with running_service("--max-connections", "3") as service, ExitStack() as stack:
        clients = []
        for _ in range(5):
            connection = stack.enter_context(connect(service.url))
            clients.append((connection, stack.enter_context(connection.makefile("rb"))))
            assert is_served(*clients[-1])

        gone = [stream.read() for _, stream in clients[:2]]
        served = [is_served(*client) for client in clients[2:]]

    assert gone == [b""] * 2
    assert served == [True] * 3


def is_served(connection: socket.socket, stream: BinaryIO) -> bool:
    """Return whether a connection gets a response to a request."""
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    if stream.readline() != b"HTTP/1.1 200 OK\r\n":
        return False
    (length,) = [int(line.split()[1]) for line in iter(stream.readline, b"\r\n") if line.startswith(b"content-length")]
    return len(stream.read(length)) == length


@pytest.mark.hadakv_protocol
def test_connection_with_half_a_head_is_closed() -> None:
    with running_service("--max-connections", "2") as service, ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(service.url)).sendall(b"GET /")

        assert httpx.get(f"{service.url}/healthz").status_code == 200


@pytest.mark.hadakv_protocol
def test_new_connection_gets_503_if_all_are_busy(session: str) -> None:
    with (
        running_service("--max-connections", "1") as service,
        connect(service.url) as one,
        one.makefile("rb") as answers,
    ):
        head = f"POST /sessions/{session}/kv HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\n"
        one.sendall(f"{head}Content-Length: {len(PACKED)}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert [answers.readline(), answers.readline()] == [b"HTTP/1.1 100 Continue\r\n", b"\r\n"]
        with connect(service.url) as other, other.makefile("rb") as stream:
            told = stream.read().decode()
        one.sendall(PACKED)
        assert answers.readline() == b"HTTP/1.1 201 Created\r\n"

    assert told.startswith("HTTP/1.1 503 ")
    assert f"content-type: {PROBLEM}" in told
    assert "retry-after: 1" in told
    assert "urn:hadakv:problem:busy" in told


# Files


def limited(soft: int, hard: int) -> tuple[str, ...]:
    """Return a program that runs the service with limits of open files."""
    return (
        "-c",
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        "from hadakv_service.__main__ import main; main()",
    )


def test_soft_limit_of_open_files_is_raised() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with running_service(program=limited(64, hard)) as service, ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(service.url))

        assert httpx.get(f"{service.url}/healthz").status_code == 200


@pytest.mark.hadakv_protocol
def test_hard_limit_of_open_files_limits_connections(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        log.open("w") as into,
        running_service(program=limited(64, 128), log=into) as service,
        ExitStack() as stack,
    ):
        for _ in range(300):
            stack.enter_context(connect(service.url))

        assert httpx.get(f"{service.url}/healthz").status_code == 200

    assert "limit of open files is 128: at most 64 connections instead of 1024" in log.read_text("utf-8")
