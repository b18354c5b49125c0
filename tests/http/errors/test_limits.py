"""Limits of body size, memory and queue: requests beyond them are rejected, and nothing changes."""

import threading
from collections.abc import Iterator

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_service.errors import ResponseTooLarge
from hadakv_service.operations.read import check_response_size
from hadakv_service.storage.memory_budget import PAGE_OVERHEAD_NBYTES, RUN_OVERHEAD_NBYTES, SESSION_OVERHEAD_NBYTES
from hadakv_service.testing import RunningService, running_service
from support.assertions import K, V, spoiled
from support.contract import MSGPACK, Answer, Caller, connect, status_line, tensor
from support.services.program import WITH_TINY_MEMORY

# 413: body too large

MAX_BODY = 64 * 1024


@pytest.fixture(scope="module")
def small() -> Iterator[RunningService]:
    """Service with a body limit of 64 KiB."""
    with running_service("--max-body", str(MAX_BODY)) as service:
        yield service


@pytest.mark.parametrize("path", ["/sessions/large/kv", "/encode", "/decode"])
@pytest.mark.parametrize("length", [MAX_BODY + 1, 10**12])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"], ids=["at once", "after 100 Continue"])
def test_too_large_content_length_is_rejected_before_the_body(
    small: RunningService, path: str, length: int, expect: str
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\n"

    with connect(small.url) as connection:
        connection.sendall(f"{head}Content-Length: {length}\r\n{expect}\r\n".encode())
        line = status_line(connection)

    assert line.startswith(b"HTTP/1.1 413 ")


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


def test_chunked_body_is_rejected_once_too_large(small: RunningService) -> None:
    head = f"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\nTransfer-Encoding: chunked\r\n\r\n"

    with connect(small.url) as connection:
        connection.sendall(head.encode() + chunked(*[bytes(1024)] * 64, b"!"))
        line = status_line(connection)

    assert line.startswith(b"HTTP/1.1 413 ")


def test_too_large_body_does_not_change_the_session(small: RunningService, session: str) -> None:
    with Caller(small.url) as caller:
        caller.append(session, K, V)
        before = caller.snapshot(session)
        large = np.ones((1, 2, 512, 64), np.float16)

        response = caller.append(session, large, large)

        assert response.problem(413, "body-too-large")["limit"] == MAX_BODY
        assert caller.snapshot(session) == before


@pytest.mark.parametrize("framing", ["Content-Length", "chunked"])
def test_body_of_exactly_the_limit_is_read(small: RunningService, framing: str) -> None:
    body = bytes(MAX_BODY)

    with Caller(small.url) as caller:
        content = body if framing == "Content-Length" else iter([body[:1000], body[1000:]])
        response = caller.http.post("/encode", content=content, headers={"content-type": MSGPACK})

    assert response.status_code == 400, "msgpack's 0 with bytes after its end: it was read"


def test_read_larger_than_max_body_is_rejected(small: RunningService, session: str) -> None:
    with Caller(small.url) as caller:
        part = np.ones((1, 2, 100, 64), np.float16)
        for _ in range(2):
            caller.append(session, part, part, codec={"bits": 2})

        response = caller.get(f"/sessions/{session}/kv", form="float32")

        problem = response.problem(422, "response-too-large")
        assert (problem["limit"], problem["tokens"]) == (MAX_BODY, 64)
        assert (problem["start"], problem["stop"], problem["length"], problem["layers"]) == (0, 200, 200, [0])
        assert "64 tokens of these layers fit one response" in problem["detail"]
        assert caller.get(f"/sessions/{session}/kv", form="float32", start=100, stop=164).status == 200
        assert caller.get(f"/sessions/{session}/kv", form="float32", start=100, stop=165).status == 422


def test_read_of_layers_that_do_not_fit_together_says_so(small: RunningService, session: str) -> None:
    with Caller(small.url) as caller:
        part = np.ones((16, 8, 1, 64), np.float16)
        for layer in range(0, 32, 16):
            caller.append(session, part, part, layer=layer)

        response = caller.get(f"/sessions/{session}/kv", form="float32")

        problem = response.problem(422, "response-too-large")
        assert (problem["tokens"], problem["layers"]) == (0, list(range(32)))
        assert "no token of all these layers fits one response" in problem["detail"]
        assert caller.get(f"/sessions/{session}/kv", form="float32", layers="0:16").status == 200


def test_ring_that_does_not_fit_names_the_window(small: RunningService, session: str) -> None:
    with Caller(small.url) as caller:
        caller.put(f"/sessions/{session}", {"window": 1000})
        caller.append(session, K, V)

        response = caller.get(f"/sessions/{session}/kv", layout="ring")

        problem = response.problem(422, "response-too-large")
        assert (problem["window"], problem["start"], problem["stop"]) == (1000, 0, K.shape[2])
        assert 0 < problem["tokens"] < 1000


def test_probe_names_the_limit(small: RunningService) -> None:
    with Caller(small.url) as caller:
        assert caller.get("/healthz").body["max_body_nbytes"] == MAX_BODY


def test_diagnostics_larger_than_max_body_are_rejected(small: RunningService) -> None:
    x = tensor(np.ones((450, 64), np.float16))

    with Caller(small.url) as caller:
        plain, diagnosed = (caller.post("/encode", {"x": x, "diagnostics": wanted}) for wanted in (False, True))

    assert plain.status == 200
    assert diagnosed.problem(422, "response-too-large")["limit"] == MAX_BODY


def test_response_larger_than_msgpack_allows_is_rejected() -> None:
    check_response_size("stop", (1 << 32) - 1, 1 << 32)

    with pytest.raises(ResponseTooLarge):
        check_response_size("stop", 1 << 32, 1 << 32)


# 507: memory budget exceeded

BUDGET = 1 << 20


@pytest.fixture
def tiny() -> Iterator[Caller]:
    """Client of a fresh service with a memory budget of 1 MiB."""
    with running_service("--memory-budget", str(BUDGET)) as service, Caller(service.url) as caller:
        yield caller


def tokens(count: int) -> NDArray[np.float16]:
    """Append tokens of one layer and head: 72 bytes per token with the default codec, K and V together."""
    return np.random.default_rng(count).standard_normal((1, 1, count, 64)).astype(np.float16)


def beside(pages: int) -> int:
    """Return the overhead of a session of one layer, in bytes."""
    return SESSION_OVERHEAD_NBYTES + RUN_OVERHEAD_NBYTES + pages * PAGE_OVERHEAD_NBYTES


def test_append_larger_than_the_budget_evicts_nothing(tiny: Caller) -> None:
    for name in ("one", "two", "three"):
        tiny.append(name, tokens(2000), tokens(2000))
    before = [tiny.snapshot(name) for name in ("one", "two", "three")]
    used = tiny.used_nbytes()

    made = tiny.append("new", tokens(16000), tokens(16000))
    grown = tiny.append("two", tokens(14000), tokens(14000))

    for response, nbytes in ((made, 16000 * 72), (grown, 14000 * 72)):
        problem = response.problem(507, "insufficient-storage")
        assert problem["budget"] == BUDGET
        assert nbytes < problem["needed"] < nbytes + 128_000, "the packed bytes, and what is kept beside them"
    tiny.get("/sessions/new").problem(404, "session-not-found")
    assert [tiny.snapshot(name) for name in ("one", "two", "three")] == before
    assert tiny.used_nbytes() == used == 3 * (2000 * 72 + beside(8))


def test_lru_sessions_are_evicted_for_an_append(tiny: Caller) -> None:
    for name in ("one", "two", "three"):
        tiny.append(name, tokens(4000), tokens(4000))
    tiny.read("one")
    before = tiny.snapshot("one")

    response = tiny.append("new", tokens(4800), tokens(4800))

    assert response.status == 201
    assert [record["session"] for record in tiny.get("/sessions").body["sessions"]] == ["new", "one", "three"]
    assert tiny.snapshot("one") == before
    assert tiny.used_nbytes() == 12800 * 72 + 2 * beside(16) + beside(19) <= BUDGET


def test_session_may_use_exactly_the_whole_budget(tiny: Caller) -> None:
    most = (BUDGET - beside(53)) // 72

    filled = tiny.append("one", tokens(most), tokens(most))
    before = tiny.snapshot("one")
    rejected = tiny.append("one", tokens(1), tokens(1))

    assert filled.status == 201
    rejected.problem(507, "insufficient-storage")
    assert tiny.snapshot("one") == before


def test_rejected_append_releases_its_reservation(tiny: Caller) -> None:
    k = spoiled(tokens(12000), [(0, 0, 11999, 0)], np.nan)

    responses = [tiny.append("one", k, k) for _ in range(5)]

    assert {response.status for response in responses} == {422}
    assert tiny.used_nbytes() == 0
    assert tiny.append("one", tokens(12800), tokens(12800)).status == 201


def test_sessions_without_tokens_count_towards_the_budget(tiny: Caller) -> None:
    most = BUDGET // SESSION_OVERHEAD_NBYTES

    made = [tiny.put(f"/sessions/{i:03}", {"window": 10 + i}).status for i in range(most + 20)]
    listed = tiny.get("/sessions", limit=1000).body["sessions"]

    assert set(made) == {201}
    assert [record["session"] for record in listed] == [f"{i:03}" for i in range(20, most + 20)]
    assert tiny.used_nbytes() == most * SESSION_OVERHEAD_NBYTES
    assert tiny.append("a", tokens(100), tokens(100)).status == 201
    tiny.get("/sessions/020").problem(404, "session-not-found")


def test_session_that_does_not_fit_is_not_created() -> None:
    with running_service("--memory-budget", "1000", program=WITH_TINY_MEMORY) as service, Caller(service.url) as caller:
        responses = [caller.put("/sessions/a", {}), caller.append("a", tokens(1), tokens(1))]

        for response in responses:
            response.problem(507, "insufficient-storage")
        assert caller.get("/sessions").body["sessions"] == []
        assert caller.used_nbytes() == 0


# 503: queue full


def test_full_queue_responds_busy() -> None:
    body = msgpack.packb({"x": tensor(np.ones((20_000, 64), np.float16))})
    busy: list[Answer] = []
    others: set[int] = set()

    def encode_until_somebody_was_refused(url: str) -> None:
        with Caller(url) as caller:
            for _ in range(500):
                if busy:
                    return
                response = caller.send("POST", "/encode", body)
                if response.status == 503:
                    busy.append(response)
                else:
                    others.add(response.status)

    with running_service("--max-queued-jobs", "1") as service:
        threads = [threading.Thread(target=encode_until_somebody_was_refused, args=(service.url,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Caller(service.url) as caller:
            afterwards = caller.send("POST", "/encode", body)

    assert busy, "eight callers shared a queue of one and were all served"
    for response in busy:
        response.problem(503, "busy")
        assert int(response.headers["retry-after"]) >= 1
    assert others == {200}
    assert afterwards.status == 200
