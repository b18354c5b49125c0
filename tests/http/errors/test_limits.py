"""Bodies too large, memory used up and a queue that is full: refused, and everything is as it was."""

import threading
from collections.abc import Iterator

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_service.storage.memory_budget import PAGE_OVERHEAD_NBYTES, RUN_OVERHEAD_NBYTES, SESSION_OVERHEAD_NBYTES
from hadakv_service.testing import RunningService, running_service
from support.assertions import K, V, spoiled
from support.contract import MSGPACK, Answer, Caller, connect, status_line, tensor

# 413: the body is too large

MAX_BODY = 64 * 1024


@pytest.fixture(scope="module")
def small() -> Iterator[RunningService]:
    """A service that takes bodies of 64 KiB at most."""
    with running_service("--max-body", str(MAX_BODY)) as service:
        yield service


@pytest.mark.parametrize("path", ["/sessions/large/kv", "/encode", "/decode"])
@pytest.mark.parametrize("length", [MAX_BODY + 1, 10**12])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"], ids=["at once", "after 100 Continue"])
def test_a_body_that_says_it_is_too_large_is_refused_before_any_of_it_is_sent(
    small: RunningService, path: str, length: int, expect: str
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\n"

    with connect(small.url) as connection:
        connection.sendall(f"{head}Content-Length: {length}\r\n{expect}\r\n".encode())
        line = status_line(connection)

    assert line.startswith(b"HTTP/1.1 413 ")


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


def test_a_chunked_body_is_refused_once_it_is_too_large(small: RunningService) -> None:
    head = f"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MSGPACK}\r\nTransfer-Encoding: chunked\r\n\r\n"

    with connect(small.url) as connection:
        connection.sendall(head.encode() + chunked(*[bytes(1024)] * 64, b"!"))
        line = status_line(connection)

    assert line.startswith(b"HTTP/1.1 413 ")


def test_a_too_large_body_leaves_the_session_as_it_was(small: RunningService, session: str) -> None:
    with Caller(small.url) as caller:
        caller.append(session, K, V)
        before = caller.snapshot(session)
        large = np.ones((1, 2, 512, 64), np.float16)

        answer = caller.append(session, large, large)

        assert answer.problem(413, "body-too-large")["limit"] == MAX_BODY
        assert caller.snapshot(session) == before


@pytest.mark.parametrize("framing", ["Content-Length", "chunked"])
def test_a_body_of_exactly_the_limit_is_read(small: RunningService, framing: str) -> None:
    body = bytes(MAX_BODY)

    with Caller(small.url) as caller:
        content = body if framing == "Content-Length" else iter([body[:1000], body[1000:]])
        response = caller.http.post("/encode", content=content, headers={"content-type": MSGPACK})

    assert response.status_code == 400, "msgpack's 0 with bytes after its end: it was read"


def test_a_read_that_asks_for_more_than_a_body_may_have_is_refused(small: RunningService, session: str) -> None:
    with Caller(small.url) as caller:
        part = np.ones((1, 2, 100, 64), np.float16)
        for _ in range(2):
            caller.append(session, part, part, codec={"bits": 2})

        answer = caller.get(f"/sessions/{session}/kv", form="float32")

        assert answer.problem(422, "response-too-large")["limit"] == MAX_BODY
        assert caller.get(f"/sessions/{session}/kv", form="float32", stop=20).status == 200


# 507: it does not fit the memory

BUDGET = 256 * 1024


@pytest.fixture
def tiny() -> Iterator[Caller]:
    """A client of a fresh service that keeps 256 KiB."""
    with running_service("--memory-budget", str(BUDGET)) as service, Caller(service.url) as caller:
        yield caller


def tokens(count: int) -> NDArray[np.float16]:
    """One layer and head: at the default codec 72 bytes a token, K and V together."""
    return np.random.default_rng(count).standard_normal((1, 1, count, 64)).astype(np.float16)


def beside(pages: int) -> int:
    """What a session of one layer is counted as beside its packed bytes."""
    return SESSION_OVERHEAD_NBYTES + RUN_OVERHEAD_NBYTES + pages * PAGE_OVERHEAD_NBYTES


def test_an_append_larger_than_the_budget_is_refused_and_nothing_is_evicted_in_vain(tiny: Caller) -> None:
    for name in ("one", "two", "three"):
        tiny.append(name, tokens(500), tokens(500))
    before = [tiny.snapshot(name) for name in ("one", "two", "three")]
    used = tiny.used_nbytes()

    made = tiny.append("new", tokens(4000), tokens(4000))
    grown = tiny.append("two", tokens(3500), tokens(3500))

    for answer, nbytes in ((made, 4000 * 72), (grown, 3500 * 72)):
        problem = answer.problem(507, "insufficient-storage")
        assert problem["budget"] == BUDGET
        assert nbytes < problem["needed"] < nbytes + 32_000, "the packed bytes, and what is kept beside them"
    tiny.get("/sessions/new").problem(404, "session-not-found")
    assert [tiny.snapshot(name) for name in ("one", "two", "three")] == before
    assert tiny.used_nbytes() == used == 3 * (500 * 72 + beside(2))


def test_the_sessions_unused_for_longest_make_room_where_that_helps(tiny: Caller) -> None:
    for name in ("one", "two", "three"):
        tiny.append(name, tokens(1000), tokens(1000))
    tiny.read("one")
    before = tiny.snapshot("one")

    answer = tiny.append("new", tokens(1200), tokens(1200))

    assert answer.status == 201
    assert [entry["session"] for entry in tiny.get("/sessions").body["sessions"]] == ["new", "one", "three"]
    assert tiny.snapshot("one") == before
    assert tiny.used_nbytes() == 3200 * 72 + 2 * beside(4) + beside(5) <= BUDGET


def test_a_session_may_take_the_whole_budget_and_not_a_token_more(tiny: Caller) -> None:
    most = (BUDGET - beside(14)) // 72

    filled = tiny.append("one", tokens(most), tokens(most))
    before = tiny.snapshot("one")
    refused = tiny.append("one", tokens(1), tokens(1))

    assert filled.status == 201
    refused.problem(507, "insufficient-storage")
    assert tiny.snapshot("one") == before


def test_what_a_refused_append_reserved_is_given_back(tiny: Caller) -> None:
    k = spoiled(tokens(3000), [(0, 0, 2999, 0)], np.nan)

    answers = [tiny.append("one", k, k) for _ in range(5)]

    assert {answer.status for answer in answers} == {422}
    assert tiny.used_nbytes() == 0
    assert tiny.append("one", tokens(3200), tokens(3200)).status == 201


def test_sessions_without_tokens_stay_within_the_budget(tiny: Caller) -> None:
    most = BUDGET // SESSION_OVERHEAD_NBYTES

    made = [tiny.put(f"/sessions/{i:03}", {"window": 10 + i}).status for i in range(most + 20)]
    listed = tiny.get("/sessions", limit=1000).body["sessions"]

    assert set(made) == {201}
    assert [entry["session"] for entry in listed] == [f"{i:03}" for i in range(20, most + 20)]
    assert tiny.used_nbytes() == most * SESSION_OVERHEAD_NBYTES
    assert tiny.append("a", tokens(100), tokens(100)).status == 201
    tiny.get("/sessions/020").problem(404, "session-not-found")


def test_where_nothing_fits_nothing_is_made() -> None:
    with running_service("--memory-budget", "1000") as service, Caller(service.url) as caller:
        answers = [caller.put("/sessions/a", {}), caller.append("a", tokens(1), tokens(1))]

        for answer in answers:
            answer.problem(507, "insufficient-storage")
        assert caller.get("/sessions").body["sessions"] == []
        assert caller.used_nbytes() == 0


# 503: too many wait


def test_callers_are_told_to_come_back_while_the_queue_is_full() -> None:
    body = msgpack.packb({"x": tensor(np.ones((20_000, 64), np.float16))})
    busy: list[Answer] = []
    others: set[int] = set()

    def encode_until_somebody_was_refused(url: str) -> None:
        with Caller(url) as caller:
            for _ in range(500):
                if busy:
                    return
                answer = caller.send("POST", "/encode", body)
                if answer.status == 503:
                    busy.append(answer)
                else:
                    others.add(answer.status)

    with running_service("--max-queued-jobs", "1") as service:
        threads = [threading.Thread(target=encode_until_somebody_was_refused, args=(service.url,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Caller(service.url) as caller:
            afterwards = caller.send("POST", "/encode", body)

    assert busy, "eight callers shared a queue of one and were all served"
    for answer in busy:
        answer.problem(503, "busy")
        assert int(answer.headers["retry-after"]) >= 1
    assert others == {200}
    assert afterwards.status == 200
