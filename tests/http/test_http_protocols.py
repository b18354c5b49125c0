"""The API is the same with each HTTP protocol. The limits of hadakv's own protocol are tested in connections/."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgpack
import numpy as np
import pytest

from hadakv_service.testing import RunningService, running_service
from support.contract import MSGPACK, Caller, append_body, array, connect

# A body that hadakv's protocol receives straight into a buffer.
LARGE = np.random.default_rng(3).standard_normal((2, 4, 300, 128)).astype(np.float16)
SMALL = LARGE[:, :, :1]
LARGE_BODY: bytes = msgpack.packb(append_body(LARGE, LARGE))
WARNING = "http protocol uvicorn: no limits on header size, slow clients, pipelined requests and connections"


@dataclass
class Served:
    """A service with one HTTP protocol.

    Attributes:
        protocol: value of `--http-protocol`.
        service: the service.
        log: file with its log.
    """

    protocol: str
    service: RunningService
    log: Path

    def lines(self) -> list[dict[str, object]]:
        """Return the records of the log."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module", params=["hadakv", "uvicorn"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("log") / "log"
    flags = ("--http-protocol", request.param, "--max-body", "8MiB", "--log-format", "json")
    with log.open("w") as into, running_service(*flags, log=into) as service:
        yield Served(request.param, service, log)


@pytest.fixture
def api(served: Served) -> Iterator[Caller]:
    with Caller(served.service.url) as caller:
        yield caller


def test_stock_protocol_logs_one_warning(served: Served) -> None:
    warnings = [str(line["message"]) for line in served.lines() if str(line["message"]).startswith("http protocol")]

    assert [message[: len(WARNING)] for message in warnings] == ([WARNING] if served.protocol == "uvicorn" else [])


def test_small_and_large_appends_are_read_back(api: Caller, session: str) -> None:
    api.put(f"/sessions/{session}", {"codec": {"kind": "float16"}})

    placed = [api.append(session, k, k) for k in (SMALL, LARGE, SMALL)]
    k = array(api.read(session, form="float16")["k"]["values"])

    assert [answer.status for answer in placed] == [200, 200, 200]
    assert [answer.body["length"] for answer in placed] == [1, 301, 302]
    assert np.array_equal(k, np.concatenate([SMALL, LARGE, SMALL], axis=2))


def test_body_in_chunks_is_stored(api: Caller, session: str) -> None:
    chunks = iter([LARGE_BODY[:100], LARGE_BODY[100:70_000], LARGE_BODY[70_000:]])

    response = api.http.post(f"/sessions/{session}/kv", content=chunks, headers={"content-type": MSGPACK})

    assert response.status_code == 201
    assert api.get(f"/sessions/{session}").body["length"] == 300


def test_client_that_expects_100_continue_gets_it(served: Served, session: str) -> None:
    head = f"POST /sessions/{session}/kv HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\n"
    with connect(served.service.url) as connection, connection.makefile("rb") as stream:
        connection.sendall(f"{head}Content-Length: {len(LARGE_BODY)}\r\nExpect: 100-continue\r\n\r\n".encode())
        first = [stream.readline(), stream.readline()]
        connection.sendall(LARGE_BODY)
        second = stream.readline()

    assert first == [b"HTTP/1.1 100 Continue\r\n", b"\r\n"]
    assert second == b"HTTP/1.1 201 Created\r\n"


def test_incomplete_body_stores_nothing(served: Served, api: Caller, session: str) -> None:
    head = f"POST /sessions/{session}/kv HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\n"
    for nbytes in (100, 100_000):
        with connect(served.service.url) as connection:
            connection.sendall(f"{head}Content-Length: {len(LARGE_BODY)}\r\n\r\n".encode() + LARGE_BODY[:nbytes])
            connection.shutdown(socket.SHUT_RDWR)

    assert api.get(f"/sessions/{session}").status == 404
    assert api.get("/readyz").status == 200


def test_fork_export_and_import_round_trip(api: Caller, session: str) -> None:
    api.append(session, LARGE, LARGE)

    forked = api.post(f"/sessions/{session}/fork", {"id": f"{session}-fork"})
    file = api.get(f"/sessions/{session}/export")
    imported = api.send("POST", f"/sessions/{session}-import/import", file.content, "application/octet-stream")
    reads = [api.read(name)["k"] for name in (session, f"{session}-fork", f"{session}-import")]

    assert (forked.status, file.status, imported.status) == (201, 200, 201)
    assert reads[0] == reads[1] == reads[2]


def test_errors_are_problems_with_a_request_id(api: Caller, session: str) -> None:
    answers = {
        "session-not-found": api.get(f"/sessions/{session}"),
        "malformed-body": api.send("POST", f"/sessions/{session}/kv", b"\xc1"),
        "invalid-request": api.send("POST", f"/sessions/{session}/kv", msgpack.packb({"k": 1})),
        "unsupported-media-type": api.send("POST", f"/sessions/{session}/kv", LARGE_BODY, "text/plain"),
        "body-too-large": api.send("POST", f"/sessions/{session}/kv", bytes((8 << 20) + 1)),
        "position-conflict": api.send("POST", f"/sessions/{session}/kv", position_body(7)),
    }
    statuses = {404: "session-not-found", 400: "malformed-body", 422: "invalid-request"}
    statuses |= {415: "unsupported-media-type", 413: "body-too-large", 409: "position-conflict"}

    for status, slug in statuses.items():
        assert answers[slug].problem(status, slug)["request_id"] == answers[slug].headers["x-request-id"]


def position_body(position: int) -> bytes:
    packed: bytes = msgpack.packb(append_body(SMALL, SMALL) | {"position": position})
    return packed


def test_keep_alive_and_pipelined_requests_get_responses(served: Served) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    with connect(served.service.url) as connection, connection.makefile("rb") as stream:
        connection.sendall((request + b"\r\n") * 3 + request + b"Connection: close\r\n\r\n")
        received = stream.read()

    assert received.count(b"HTTP/1.1 200 OK") == 4


def test_websocket_offer_is_ignored(served: Served) -> None:
    offer = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}

    response = httpx.get(f"{served.service.url}/healthz", headers=offer)

    assert response.status_code == 200
