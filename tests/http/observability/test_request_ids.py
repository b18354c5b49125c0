"""Request ids: every response has one, from the client if valid, in the header and in the problem document."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import numpy as np
import pytest

from hadakv_service.testing import RunningService, running_service
from support.assertions import PACKED, K, V
from support.contract import MSGPACK, Caller, append_body, connect
from support.polling import eventually
from support.services.blocked_device import HELD
from support.services.failing_backend import PROGRAM as FAILING
from support.services.prometheus import scrape

HEADER = "x-request-id"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/sessions/{}/kv", PACKED),
        ("POST", "/sessions/{}/kv", b"\x80"),
        ("POST", "/sessions/{}/kv", b"\xc1"),
        ("GET", "/sessions/{}/kv", b""),
        ("PUT", "/sessions/{}", b"\x80"),
        ("DELETE", "/sessions/{}", b""),
        ("HEAD", "/sessions/{}", b""),
        ("GET", "/sessions/{}%2F", b""),
        ("GET", "/sessions?limit=x", b""),
        ("GET", "/nowhere", b""),
        ("PURGE", "/healthz", b""),
        ("GET", "/healthz", b""),
        ("GET", "/readyz", b""),
        ("GET", "/metrics", b""),
        ("GET", "/docs", b""),
        ("GET", "/openapi.json", b""),
    ],
)
@pytest.mark.parametrize("given", ["me.1", "A-Z_0-9.", "x" * 128])
def test_response_has_the_request_id_of_the_client(
    caller: Caller, session: str, method: str, path: str, body: bytes, given: str
) -> None:
    response = caller.send(method, path.format(session), body, **{HEADER: given})

    assert response.headers.get_list(HEADER) == [given]
    if response.status >= 400 and response.content:
        assert response.body["request_id"] == given


@pytest.mark.parametrize(
    "given", ["", " ", "x" * 129, "a b", "a/b", "a:b", "ä".encode().decode("latin-1"), "a\tb", "{}"]
)
def test_invalid_request_id_is_replaced(server: RunningService, session: str, given: str) -> None:
    with connect(server.url) as connection, connection.makefile("rb") as stream:
        connection.sendall(
            f"GET /sessions/{session} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: {given}\r\n\r\n".encode("latin-1")
        )
        lines = [line.strip() for line in iter(stream.readline, b"\r\n")]

    ids = [line.partition(b": ")[2] for line in lines if line.startswith(b"x-request-id: ")]
    assert lines[0].startswith(b"HTTP/1.1 404 ")
    assert len(ids) == 1
    assert ids[0] != given.encode("latin-1")
    assert ids[0].replace(b"-", b"").isalnum()


def test_generated_request_ids_are_unique(caller: Caller, session: str) -> None:
    responses = [caller.append(session, K, V) for _ in range(50)] + [
        caller.get(f"/sessions/{session}") for _ in range(50)
    ]

    ids = {response.headers[HEADER] for response in responses}

    assert len(ids) == 100
    assert all(len(each) <= 128 for each in ids)


def test_pipelined_requests_keep_their_ids(server: RunningService, session: str) -> None:
    requests = [
        f"GET /sessions/{session}-{n} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: id-{n}\r\n\r\n" for n in range(5)
    ]

    with connect(server.url) as connection:
        connection.sendall("".join(requests).encode().removesuffix(b"\r\n") + b"Connection: close\r\n\r\n")
        with connection.makefile("rb") as stream:
            received = stream.read()

    for n in range(5):
        assert received.count(b"x-request-id: id-%d\r\n" % n) == 1
        assert received.count(b'"request_id":"id-%d"' % n) == 1


# Rejections of every kind. `Answer.problem` compares the id of the document with that of the header.


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with tokens, a small memory budget and a small body limit."""
    tokens = tmp_path_factory.mktemp("narrow") / "tokens"
    tokens.write_text(f"ann:{hashlib.sha256(b'secret').hexdigest()}", "utf-8")
    with running_service("--token-file", str(tokens), "--max-body", "4MiB", "--memory-budget", "1MiB") as service:
        yield service


def test_rejection_has_the_request_id(narrow: RunningService, session: str) -> None:
    large = np.ones((1, 1, 16_000, 64), np.float16)
    with Caller(narrow.url) as stranger, Caller(narrow.url, "secret") as ann:
        stranger.append(session, K, V).problem(401, "unauthorized")
        ann.append(session, large, large).problem(507, "insufficient-storage")
        ann.send("POST", f"/sessions/{session}/kv", bytes((4 << 20) + 1)).problem(413, "body-too-large")
        ann.send("POST", f"/sessions/{session}/kv", PACKED, "text/plain").problem(415, "unsupported-media-type")
        ann.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_internal_error_has_the_request_id() -> None:
    k = np.ones((1, 1, 13, 64), np.float16)

    with running_service("--backend", "cpu", program=FAILING) as service, Caller(service.url) as caller:
        caller.append("a", k, k).problem(500, "internal-error")
        caller.append("a", k[:, :, 1:], k[:, :, 1:])
        caller.get("/sessions/a/kv", form="float32").problem(500, "internal-error")


def test_full_queue_rejection_has_the_request_id(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    with (
        running_service("--backend", "cpu", "--max-queued-jobs", "1", program=("-c", HELD, str(gate))) as service,
        ThreadPoolExecutor() as pool,
        Caller(service.url) as first,
        Caller(service.url) as second,
    ):
        held = pool.submit(first.append, "a", K, V)
        eventually(lambda: scrape(service.url)["hadakv_device_queue_jobs", ""] == 1)

        second.append("b", K, V).problem(503, "busy")

        gate.write_bytes(b"go on")
        assert held.result().status == 201


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"CONNECT x:80 HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_unparsable_request_gets_a_request_id(server: RunningService, sent: bytes) -> None:
    with connect(server.url) as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as stream:
            received = stream.read()

    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"x-request-id: ") == 1


def test_malformed_chunk_rejection_has_the_request_id(server: RunningService, session: str) -> None:
    start = f"POST /sessions/{session}/kv HTTP/1.1\r\nHost: localhost\r\n"
    head = f"{start}Content-Type: {MSGPACK}\r\nX-Request-Id: broken.chunks\r\n"

    with connect(server.url) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n".encode())
        with connect(server.url) as other:
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert other.recv(1000).startswith(b"HTTP/1.1 200 "), "the request has started by now"
        connection.sendall(b"not a length\r\n")
        with connection.makefile("rb") as stream:
            received = stream.read()

    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"x-request-id: broken.chunks\r\n" in received


def test_large_append_and_read_have_the_request_id(caller: Caller, session: str) -> None:
    x = np.ones((2, 4, 300, 128), np.float16)
    body = msgpack.packb(append_body(x, x))

    appended = caller.send("POST", f"/sessions/{session}/kv", body, **{HEADER: "large"})
    read = caller.http.get(f"/sessions/{session}/kv", params={"form": "float32"}, headers={HEADER: "larger"})

    assert (appended.status, appended.headers[HEADER]) == (201, "large")
    assert (read.status_code, read.headers[HEADER]) == (200, "larger")
