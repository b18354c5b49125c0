"""Mutated bodies are rejected or accepted, in little memory, and the service continues."""

import socket
from collections import Counter
from collections.abc import Iterator

import httpx
import msgpack
import numpy as np
import pytest

from hadakv_kernels import Codec
from hadakv_service.testing import RunningService, running_service
from support.contract import MSGPACK, Caller, append_body, connect, status_line, stream
from support.inputs.mutated_bodies import SIZED, VALID, K, requests
from support.services.process_memory import peak_nbytes

BODIES = 2_000
EXTRA_NBYTES = 64 << 20


@pytest.fixture
def fresh() -> Iterator[RunningService]:
    """Service used by this module only, warmed up with every valid call."""
    with running_service("--memory-budget", "64MiB") as service:
        with Caller(service.url) as caller:
            for call, body in VALID.items():
                assert status_of(caller, call.format("warm"), msgpack.packb(body)) in (200, 201)
        yield service


def status_of(caller: Caller, call: str, body: bytes) -> int:
    """Return the status, or 599 if there was no response."""
    method, path = call.split(" ")
    try:
        return caller.send(method, path, body).status
    except httpx.TransportError:
        return 599


def test_mutated_bodies_are_handled_in_little_memory(fresh: RunningService) -> None:
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    before = most = peak_nbytes(fresh.process.pid)

    with Caller(fresh.url) as caller:
        for number, (call, mutation, body) in enumerate(requests(20260101, BODIES)):
            status = status_of(caller, call, body)
            statuses[status] += 1
            if status >= 500:
                failures.append(f"{status}: {call} {mutation} {len(body)} bytes {body[:200].hex()}")
            if number % 100 == 99:
                most = max(most, peak_nbytes(fresh.process.pid))
        response = caller.append("afterwards", K, K)

    assert statuses.total() == BODIES
    assert failures == [], f"{dict(statuses)}; {len(failures)} failures, the first: {failures[:3]}"
    assert set(statuses) <= {200, 201, 400, 409, 422}, statuses
    assert min(statuses[status] for status in (200, 400, 422)) > BODIES / 50, f"the bodies are one-sided: {statuses}"
    assert most - before <= EXTRA_NBYTES, f"{(most - before) >> 20} MiB more; {dict(statuses)}"
    assert response.status == 201
    assert response.body["k"] == stream(K, Codec())


def test_large_declared_lengths_take_no_memory(fresh: RunningService) -> None:
    before = peak_nbytes(fresh.process.pid)
    headers = [bytes([code]) + b"\xff" * width for code, width in SIZED.items()]
    # As the whole body, as the value of each key, as a key, and as data or shape of a tensor.
    fronts = [
        b"",
        b"\x81\xa1k",
        b"\x81\xa1x",
        b"\x81\xa5codec",
        b"\x81",
        b"\x81\xa1k\x81\xa4data",
        b"\x81\xa1k\x81\xa5shape",
    ]

    with Caller(fresh.url) as caller:
        statuses = {
            status_of(caller, call.format("header"), front + header)
            for call in VALID
            for front in fronts
            for header in headers
        }

    assert statuses <= {400, 422}
    assert peak_nbytes(fresh.process.pid) - before <= EXTRA_NBYTES


def request_head(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {MSGPACK}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("tokens", [1, 3000], ids=["a small body", "a large body"])
def test_connection_closed_within_a_body_stores_nothing(
    server: RunningService, caller: Caller, session: str, share: float, tokens: int
) -> None:
    values = np.ones((1, 1, tokens, 64), np.float16)
    body = msgpack.packb(append_body(values, values))
    head = request_head(f"/sessions/{session}/kv", f"Content-Length: {len(body)}")

    with connect(server.url) as connection:
        connection.sendall(head + body[: int(share * len(body))])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # the service has seen the end of the connection: it closes it, or responds with an error

    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_interrupted_chunked_body_stores_nothing(server: RunningService, caller: Caller, session: str) -> None:
    body = msgpack.packb(append_body(K, K))
    head = request_head(f"/sessions/{session}/kv", "Transfer-Encoding: chunked")

    with connect(server.url) as connection:
        connection.sendall(head + b"%x\r\n%b\r\n" % (len(body), body))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_large_content_length_alone_takes_no_memory(fresh: RunningService) -> None:
    before = peak_nbytes(fresh.process.pid)
    head = request_head("/sessions/large/kv", f"Content-Length: {1 << 30}")
    connections = [connect(fresh.url) for _ in range(8)]

    for connection in connections:
        connection.sendall(head + b"ten bytes!")
    with Caller(fresh.url) as caller:
        while_they_wait = caller.get("/readyz").status
        for connection in connections:
            connection.close()
        afterwards = caller.append("small", K, K).status

    assert (while_they_wait, afterwards) == (200, 201)
    assert peak_nbytes(fresh.process.pid) - before <= EXTRA_NBYTES


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"POST /encode\r\n\r\n",
        b"POST /encode HTTP/9.9\r\n\r\n",
        request_head("/encode", "Content-Length: 5", "Content-Length: 6") + b"12345",
        request_head("/encode", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        request_head("/encode", "Transfer-Encoding: chunked") + b"zz\r\n\r\n",
        request_head("/encode", "Transfer-Encoding: chunked") + b"-5\r\nhello\r\n0\r\n\r\n",
        request_head("/encode", "Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\n",
    ],
    ids=[
        "bytes that are no request",
        "no version",
        "an unknown version",
        "two lengths",
        "a length and chunks",
        "a chunk size that is no number",
        "a negative chunk size",
        "a chunk size beyond all numbers",
    ],
)
def test_request_that_is_not_http_is_rejected(server: RunningService, caller: Caller, request_bytes: bytes) -> None:
    with connect(server.url) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        line = status_line(connection)

    assert line == b"" or b" 4" in line, "closed, or a rejection"
    assert caller.get("/healthz").status == 200
