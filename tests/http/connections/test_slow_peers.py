"""Slow peers: heads and bodies that stop, responses that are not read; large heads; pipelined requests."""

import re
import socket
import struct
from collections.abc import Iterator

import httpx
import msgpack
import numpy as np
import pytest

from hadakv_service.testing import RunningService, running_service
from support.assertions import PACKED, K
from support.contract import MSGPACK, PROBLEM, Caller, append_body, connect

pytestmark = pytest.mark.hadakv_protocol

# Larger than one read: the rest is received straight into a buffer.
LARGE: bytes = msgpack.packb(append_body(*[np.ones((2, 4, 300, 128), np.float16)] * 2))


@pytest.fixture(scope="module")
def hasty() -> Iterator[RunningService]:
    """Run a service with timeouts of half a second and heads of at most 2 KiB."""
    flags = ("--header-timeout", "0.5", "--stall-timeout", "0.5", "--max-header-size", "2KiB")
    with running_service(*flags, "--max-body", "64MiB", "--max-body-memory", "64MiB") as service:
        yield service


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Type: {MSGPACK}", *lines, "", "")
    return "\r\n".join(lines).encode()


def all_responses(connection: socket.socket) -> list[bytes]:
    """Return the status line of each response until the connection is closed."""
    with connection.makefile("rb") as stream:
        return re.findall(rb"HTTP/1\.1 \d{3}", stream.read())


def wait_for_timeouts(service: RunningService) -> None:
    """Wait longer than any timeout of the service: three times for a head that it times out."""
    for _ in range(3):
        with connect(service.url) as connection:
            connection.sendall(b"GET /")
            assert all_responses(connection) == [b"HTTP/1.1 408"]


def response_to_stalled(service: RunningService, *sent: bytes) -> tuple[int, httpx.Headers, dict[str, object]]:
    """Return the response to a request that stops: status, headers and problem."""
    with connect(service.url) as connection:
        connection.sendall(b"".join(sent))
        with connection.makefile("rb") as stream:
            first, _, rest = stream.read().partition(b"\r\n")
    lines, _, content = rest.partition(b"\r\n\r\n")
    headers = httpx.Headers([tuple(line.split(b": ", 1)) for line in lines.split(b"\r\n")])
    return int(first.split()[1]), headers, httpx.Response(200, content=content).json()


HEADS = [b"G", b"GET /sessions", b"GET /sessions HTTP/1.1\r\nHost: local", head("/sessions", method="GET")[:-1]]


@pytest.mark.parametrize(
    "before", [b"", head("/healthz", method="GET"), b"\r\n"], ids=["first", "second", "after a line"]
)
@pytest.mark.parametrize("sent", HEADS)
def test_incomplete_head_gets_408(hasty: RunningService, before: bytes, sent: bytes) -> None:
    with connect(hasty.url) as connection:
        connection.sendall(before + sent)
        answers = all_responses(connection)

    assert [answer.split()[1] for answer in answers] == ([b"200", b"408"] if b"healthz" in before else [b"408"])


def test_timeout_response_is_a_problem_and_closes(hasty: RunningService) -> None:
    status, headers, document = response_to_stalled(hasty, b"GET /sessions HTTP/1.1\r\n")

    assert (status, headers["content-type"], headers["connection"]) == (408, PROBLEM, "close")
    assert document["type"] == "urn:hadakv:problem:request-timeout"
    assert "0.5 seconds" in str(document["detail"])


@pytest.mark.parametrize("body", [PACKED, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("part", [0, 100, 20_000])
def test_stalled_body_gets_408_and_stores_nothing(
    hasty: RunningService, session: str, body: bytes, framing: str, part: int
) -> None:
    path, part = f"/sessions/{session}/kv", min(part, len(body) - 1)
    if framing == "length":
        sent = head(path, f"Content-Length: {len(body)}") + body[:part]
    else:
        sent = head(path, "Transfer-Encoding: chunked") + b"%x\r\n" % len(body) + body[:part]

    status, _, document = response_to_stalled(hasty, sent)

    assert (status, document["type"]) == (408, "urn:hadakv:problem:request-timeout")
    assert httpx.get(f"{hasty.url}/sessions/{session}").status_code == 404


def test_stalled_body_releases_its_memory(hasty: RunningService, session: str) -> None:
    for _ in range(3):
        status, _, _ = response_to_stalled(
            hasty, head(f"/sessions/{session}/kv", f"Content-Length: {64 << 20}"), bytes(100_000)
        )
        assert status == 408

    with Caller(hasty.url) as caller:
        assert caller.send("POST", f"/sessions/{session}/kv", LARGE).status == 201


def test_rejected_body_gets_no_second_response(hasty: RunningService) -> None:
    with connect(hasty.url) as connection:
        connection.sendall(head("/encode", "Content-Length: 5000").replace(MSGPACK.encode(), b"text/plain") + b"abc")

        assert all_responses(connection) == [b"HTTP/1.1 415"]


def test_client_that_stops_reading_is_disconnected(hasty: RunningService, session: str) -> None:
    k = np.zeros((8, 8, 1024, 64), np.float16)
    with Caller(hasty.url) as caller:
        assert caller.append(session, k, k).status == 201
    with connect(hasty.url) as connection:
        connection.sendall(head(f"/sessions/{session}/kv?form=float32", method="GET"))
        connection.recv(1)
        wait_for_timeouts(hasty)
        received = 0
        try:
            while chunk := connection.recv(1 << 20):
                received += len(chunk)
        except ConnectionResetError:
            pass

    assert received < 2 * 4 * k.size
    assert httpx.get(f"{hasty.url}/readyz").status_code == 200


def test_client_that_reads_gets_a_large_response(hasty: RunningService, session: str) -> None:
    k = np.zeros((8, 8, 1024, 64), np.float16)
    with Caller(hasty.url) as caller:
        caller.append(session, k, k)
        answer = caller.get(f"/sessions/{session}/kv", form="float32")

    assert len(answer.content) > 2 * 4 * k.size


# Large heads and trailers


@pytest.mark.parametrize("pace", [100, 1 << 20], ids=["in pieces", "at once"])
@pytest.mark.parametrize(("nbytes", "status"), [(2048, 200), (2049, 431), (500_000, 431)])
def test_head_above_the_limit_gets_431(hasty: RunningService, nbytes: int, status: int, pace: int) -> None:
    start, end = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: ", b"\r\n\r\n"
    sent = start + b"a" * (nbytes - len(start + end)) + end
    with connect(hasty.url) as connection:
        try:
            for first in range(0, len(sent), pace):
                connection.sendall(sent[first : first + pace])
            answers = all_responses(connection)
        except ConnectionError:
            answers = []

    # A client that keeps sending may lose the response, because the connection is closed.
    assert [int(answer.split()[1]) for answer in answers] == [status] or (nbytes > 10_000 and not answers)


def test_head_after_a_body_is_measured_alone(hasty: RunningService, session: str) -> None:
    sent = head(f"/sessions/{session}/kv", f"Content-Length: {len(PACKED)}") + PACKED
    rest = head("/healthz", "Connection: close", method="GET")
    with connect(hasty.url) as connection:
        connection.sendall(sent * 10 + rest[:30])
        with connection.makefile("rb") as stream:
            assert stream.readline() == b"HTTP/1.1 201 Created\r\n"
            connection.sendall(rest[30:])
            answers = re.findall(rb"HTTP/1\.1 \d{3}", stream.read())

    assert answers == [b"HTTP/1.1 200"] * 10


def test_trailers_are_ignored_and_limited(hasty: RunningService, session: str) -> None:
    start = (
        head(f"/sessions/{session}/kv", "Transfer-Encoding: chunked") + b"%x\r\n" % len(PACKED) + PACKED + b"\r\n0\r\n"
    )
    with connect(hasty.url) as connection, connection.makefile("rb") as stream:
        connection.sendall(start + b"Prefer: return=minimal\r\nX: " + b"a" * 1000 + b"\r\n\r\n")
        assert stream.readline() == b"HTTP/1.1 201 Created\r\n"
        (length,) = [
            int(line.split()[1]) for line in iter(stream.readline, b"\r\n") if line.startswith(b"content-length")
        ]
        assert msgpack.unpackb(stream.read(length))["k"]["packed"]
    with connect(hasty.url) as connection:
        connection.sendall(start + b"X: ")
        try:
            for _ in range(10):
                connection.sendall(b"a" * 1000)
            answers = all_responses(connection)
        except ConnectionError:
            answers = []

    assert answers in ([b"HTTP/1.1 431"], [])
    assert httpx.get(f"{hasty.url}/sessions/{session}").json()["length"] == K.shape[2]


# Pipelined requests


def test_malformed_request_is_rejected_in_order(server: RunningService, session: str) -> None:
    append = head(f"/sessions/{session}/kv", f"Content-Length: {len(LARGE)}") + LARGE
    with connect(server.url) as connection:
        connection.sendall(append + b"nonsense\r\n\r\n")
        answers = all_responses(connection)

    assert answers in ([], [b"HTTP/1.1 201", b"HTTP/1.1 400"])


def test_pipelined_requests_are_limited(server: RunningService) -> None:
    few, many = (head("/healthz", method="GET") * n for n in (50, 2000))
    with connect(server.url) as connection:
        connection.sendall(few + head("/healthz", "Connection: close", method="GET"))
        assert len(all_responses(connection)) == 51
    with connect(server.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(many)
        try:
            answers = all_responses(connection)
        except ConnectionResetError:
            answers = []

    assert len(answers) < 2000
