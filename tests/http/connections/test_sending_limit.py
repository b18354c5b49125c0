"""Many slow readers of large responses: the memory of responses is limited, and others wait for it."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import msgpack
import numpy as np
import pytest

from hadakv_service.http.sending import PIECES_IN_MEMORY
from hadakv_service.sessions.range_tensor import PIECE_NBYTES
from hadakv_service.testing import RunningService, running_service
from support.assertions import K, V
from support.contract import Caller, append_body, connect, status_line
from support.polling import eventually
from support.services.process_memory import peak_nbytes, resident_nbytes
from support.services.prometheus import scrape

pytestmark = pytest.mark.hadakv_protocol

SHARE = PIECES_IN_MEMORY * PIECE_NBYTES
X = np.random.default_rng(0).standard_normal((4, 4, 1024, 64)).astype(np.float16)
FLAGS = ("--threads", "1", "--memory-budget", "64MiB", "--max-sending", str(2 * SHARE))
LARGE = "/sessions/large/kv?form=float32"
# A short wait instead of ten seconds.
HURRIED = (
    "-c",
    "from hadakv_service.wire import sending_budget; sending_budget.WAIT_SECONDS = 0.01;"
    "from hadakv_service import __main__; __main__.main()",
)


def slow_reader(url: str, path: str = LARGE) -> socket.socket:
    """Ask for a large response and read nothing of it."""
    address = httpx.URL(url)
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect((address.host, address.port))
    reader.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return reader


def sending(service: RunningService, name: str = "bytes") -> float:
    return scrape(service.url)[f"hadakv_sending_{name}", ""]


@pytest.fixture
def slow() -> Iterator[RunningService]:
    """Run a service that sends two large responses at a time, and cuts readers after half a second."""
    with running_service(*FLAGS, "--stall-timeout", "0.5") as service, Caller(service.url) as caller:
        caller.append("large", X, X)
        yield service


def test_slow_readers_take_their_shares_and_no_more(slow: RunningService) -> None:
    with ExitStack() as readers:
        before = resident_nbytes(slow.process.pid)
        for _ in range(20):
            readers.enter_context(slow_reader(slow.url))
        eventually(lambda: sending(slow) == 2 * SHARE and sending(slow, "waiting") > 0)
        with Caller(slow.url) as caller:
            # Neither small responses nor appends wait.
            assert caller.append("small", K, V).status == 201
            assert caller.get("/sessions/small/kv").status == 200
        grown = peak_nbytes(slow.process.pid) - before

    # Twenty whole responses would take 160 MiB.
    assert grown < 2 * SHARE + (24 << 20)


def test_waiting_response_is_sent_after_slow_readers_are_cut(slow: RunningService) -> None:
    with Caller(slow.url) as caller, slow_reader(slow.url), slow_reader(slow.url):
        eventually(lambda: sending(slow) == 2 * SHARE)
        response = caller.get(LARGE)

    assert response.status == 200
    assert len(response.content) > 2 * 4 * X.size
    eventually(lambda: sending(slow) == 0)


def test_waiting_responses_keep_nothing_of_their_sessions() -> None:
    """Otherwise pages of deleted sessions would stay in memory uncounted, as many as there are waiting responses."""
    with running_service(*FLAGS) as service, Caller(service.url) as caller:
        for name in ("large", "read", "exported"):
            caller.append(name, X, X)
        with ExitStack() as readers:
            for _ in range(2):
                readers.enter_context(slow_reader(service.url))
            eventually(lambda: sending(service) == 2 * SHARE)
            paths = ("/sessions/read/kv?form=float32", "/sessions/exported/export")
            with slow_reader(service.url, paths[0]) as read, slow_reader(service.url, paths[1]) as exported:
                eventually(lambda: sending(service, "waiting") == 2)
                caller.delete("/sessions/read")
                caller.delete("/sessions/exported")
                readers.close()
                statuses = [status_line(read), status_line(exported)]

    assert statuses == [b"HTTP/1.1 404 Not Found"] * 2


def test_lost_connections_release_their_shares(slow: RunningService) -> None:
    with slow_reader(slow.url), slow_reader(slow.url), slow_reader(slow.url):
        eventually(lambda: sending(slow, "waiting") == 1)

    eventually(lambda: sending(slow) == sending(slow, "waiting") == 0)


@pytest.fixture(scope="module")
def hurried() -> Iterator[RunningService]:
    """Run a service that rejects large responses at once while two are sent."""
    with running_service(*FLAGS, program=HURRIED) as service, Caller(service.url) as caller:
        caller.append("large", X, X)
        yield service


def test_response_without_memory_gets_503_and_stores_nothing(hurried: RunningService) -> None:
    with Caller(hurried.url) as caller, slow_reader(hurried.url), slow_reader(hurried.url):
        eventually(lambda: sending(hurried) == 2 * SHARE)
        read = caller.get(LARGE)
        append = caller.append("other", X, X)
        encoded = caller.send("POST", "/encode", msgpack.packb({"x": append_body(X, X)["k"], "diagnostics": True}))
        minimal = caller.post("/sessions/minimal/kv", append_body(X, X), Prefer="return=minimal")
        rejected = sending(hurried, "rejected_total")
        listed = [info["session"] for info in caller.get("/sessions").body["sessions"]]

    for response in (read, append, encoded):
        response.problem(503, "busy")
        assert response.headers["retry-after"] == "1"
    assert minimal.status == 201
    assert rejected == 3
    assert listed == ["large", "minimal"]


def test_sent_responses_count_no_longer(hurried: RunningService) -> None:
    with Caller(hurried.url) as caller:
        for path in (LARGE, "/sessions/large/kv?stop=100", "/sessions/large/kv", "/sessions/large/export"):
            assert caller.get(path).status == 200
        caller.append("whole", X, X)
        caller.send("POST", "/encode", msgpack.packb({"x": append_body(X, X)["k"]}))
        caller.send("POST", "/encode", msgpack.packb({"x": 1}))
        caller.get("/sessions/missing/kv")

    with connect(hurried.url):
        eventually(lambda: sending(hurried) == 0)
