"""Concurrent clients: every token is stored once, in one order, and retries change nothing."""

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import Codec, Encoded, reference
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.testing import RunningService
from support.contract import Answer, Caller, Json, array, stream, tensor

DEFAULT = Codec()
RNG = np.random.default_rng(11)
# The float16 codec stores K unchanged, so a token that is read names its writer.
NAMED = {"k": {"kind": "float16"}, "v": {}}


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work(0)` to `work(count - 1)` on threads that start together."""
    barrier = Barrier(count)

    def started(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(started, range(count)))


def token(writer: int, number: int, count: int = 1) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return `count` tokens of two layers and one head. Their content is the writer and the order."""
    k = np.zeros((2, 1, count, 64), np.float16)
    k[..., 0], k[..., 1], k[..., 2] = writer, number, np.arange(count)
    v = np.random.default_rng((writer, number)).standard_normal(k.shape).astype(np.float16)
    return k, v


def names(held: Json) -> list[tuple[int, int, int]]:
    """Return writer, append number and index of each token in a session. All layers must agree."""
    values = array(held["k"]["values"])[..., :3].astype(int)
    assert (values == values[:1]).all(), "the layers disagree"
    return [(int(w), int(n), int(i)) for w, n, i in values[0, 0]]


@pytest.mark.parametrize("writers", [2, 8])
def test_concurrent_appends_store_every_token_once(
    server: RunningService, caller: Caller, session: str, writers: int
) -> None:
    each = 240 // writers

    def write(writer: int) -> dict[int, tuple[int, int, int]]:
        reported: dict[int, tuple[int, int, int]] = {}
        with Caller(server.url) as own:
            for number in range(each):
                count = 1 + (writer + number) % 3
                response = own.append(session, *token(writer, number, count), codec=NAMED)
                assert response.status in (200, 201), response
                reported |= {response.body["position"] + i: (writer, number, i) for i in range(count)}
        return reported

    responses = at_once(writers, write)

    held = caller.read(session)
    reported = {position: name for response in responses for position, name in response.items()}
    order = [reported[position] for position in range(len(reported))]
    assert len(reported) == sum(map(len, responses)) == held["length"]
    assert names(held) == order
    v = np.concatenate(
        [token(writer, number, 1 + (writer + number) % 3)[1] for writer, number, i in order if i == 0], axis=2
    )
    assert held["v"] == stream(v, DEFAULT)
    assert caller.info(session)["nbytes"] == len(reported) * 2 * (128 + 36)


def test_concurrent_creates_make_one_session(server: RunningService, session: str) -> None:
    def write(writer: int) -> int:
        with Caller(server.url) as own:
            return own.append(session, *token(writer, 0), codec=NAMED).status

    statuses = Counter(at_once(8, write))

    assert statuses == {201: 1, 200: 7}


def write_at_positions(url: str, session: str, writer: int, count: int) -> tuple[list[int], int]:
    """Append tokens at expected positions, corrected after conflicts. Return the positions and count of conflicts."""
    places: list[int] = []
    position = conflicts = 0
    with Caller(url) as own:
        while len(places) < count:
            response = own.append(session, *token(writer, len(places)), codec=NAMED, position=position)
            if response.status == 409:
                position = response.problem(409, "position-conflict")["length"]
                conflicts += 1
                continue
            assert response.status in (200, 201), response
            places.append(position)
            position += 1
    return places, conflicts


def test_concurrent_writers_with_positions_all_succeed(server: RunningService, caller: Caller, session: str) -> None:
    responses = at_once(2, lambda writer: write_at_positions(server.url, session, writer, 150))

    order = names(caller.read(session))
    for writer, (places, _) in enumerate(responses):
        assert [order[place] for place in places] == [(writer, number, 0) for number in range(150)]
    assert len(order) == 300
    assert sum(conflicts for _, conflicts in responses) > 0, "they never met"


def test_concurrent_identical_appends_are_stored_once(server: RunningService, caller: Caller, session: str) -> None:
    k, v = token(3, 4, 5)

    def write(_: int) -> Answer:
        with Caller(server.url) as own:
            return own.append(session, k, v, codec=NAMED, position=0)

    responses = at_once(8, write)

    assert Counter(response.status for response in responses) == {201: 1, 200: 7}
    assert len({response.content for response in responses}) == 1
    assert caller.info(session)["length"] == 5


# Repeated appends


def pair(*shape: int) -> tuple[NDArray[Any], NDArray[Any]]:
    return tuple(RNG.standard_normal(shape).astype(np.float16) for _ in "kv")  # type: ignore[return-value]


@pytest.mark.parametrize("start", [0, 5, PAGE_TOKENS - 3, PAGE_TOKENS, 2 * PAGE_TOKENS - 1])
@pytest.mark.parametrize("count", [1, 7, PAGE_TOKENS + 1])
@pytest.mark.parametrize("later", [0, 1, 300])
def test_repeated_append_changes_nothing(caller: Caller, session: str, start: int, count: int, later: int) -> None:
    k, v = pair(2, 1, start + count + later, 64)
    if start:
        caller.append(session, k[:, :, :start], v[:, :, :start])
    part = slice(start, start + count)
    first = caller.append(session, k[:, :, part], v[:, :, part], position=start)
    if later:
        caller.append(session, k[:, :, start + count :], v[:, :, start + count :])
    before = caller.snapshot(session)

    repeated = [caller.append(session, k[:, :, part], v[:, :, part], position=start) for _ in range(2)]

    assert [response.status for response in repeated] == [200, 200]
    assert [response.content for response in repeated] == [first.content] * 2
    assert caller.snapshot(session) == before


@pytest.mark.parametrize("codec", [{"kind": "float16"}, {"bits": 8, "norm": "unbiased"}, {"k": {"bits": 2}}], ids=str)
def test_repeated_append_is_recognised_with_every_codec(caller: Caller, session: str, codec: Json) -> None:
    k, v = pair(1, 2, 9, 128)
    first = caller.append(session, k, v, codec=codec, position=0)

    repeated = caller.append(session, k, v, codec=codec, position=0)

    assert (repeated.status, repeated.content) == (200, first.content)


def test_part_of_an_append_may_be_repeated(caller: Caller, session: str) -> None:
    k, v = pair(3, 1, 20, 64)
    caller.append(session, k, v)
    before = caller.snapshot(session)

    tokens = caller.append(session, k[:, :, 3:9], v[:, :, 3:9], position=3)
    layer = caller.append(session, k[1], v[1], layer=1, position=0)

    assert (tokens.status, layer.status) == (200, 200)
    assert tokens.body["k"] == stream(k[:, :, 3:9], DEFAULT)
    assert caller.snapshot(session) == before


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 0, 4, 63), (1, 0, 2, 30)], ids=["first", "last", "middle"])
@pytest.mark.parametrize("name", "kv")
def test_other_content_at_a_stored_position_is_a_conflict(
    caller: Caller, session: str, place: tuple[int, ...], name: str
) -> None:
    k, v = pair(2, 1, 5, 64)
    caller.append(session, k, v)
    before = caller.snapshot(session)
    changed = {"k": k.copy(), "v": v.copy()}
    changed[name][place] += np.float16(3)

    response = caller.append(session, **changed, position=0)

    assert response.problem(409, "position-conflict")["length"] == 5
    assert caller.snapshot(session) == before


def test_content_with_another_norm_is_a_conflict(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 5, 64)
    first = caller.append(session, k, v)

    response = caller.append(session, k * np.float16(2), v, position=0)

    doubled = reference.encode(k * np.float16(2), DEFAULT.at(64))
    assert array(first.body["k"]["packed"]).tobytes() == doubled.packed.tobytes()
    response.problem(409, "position-conflict")


def test_repetition_beyond_the_end_is_a_conflict(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 10, 64)
    caller.append(session, k[:, :, :6], v[:, :, :6])
    before = caller.snapshot(session)

    response = caller.append(session, k, v, position=0)

    assert response.problem(409, "position-conflict")["length"] == 6
    assert caller.snapshot(session) == before


def test_repetition_is_recognised_after_one_layer_has_grown(caller: Caller, session: str) -> None:
    k, v = pair(2, 1, 10, 64)
    first = caller.append(session, k[:, :, :6], v[:, :, :6], position=0)
    caller.append(session, k[:1, :, 6:], v[:1, :, 6:])
    before = caller.snapshot(session)

    repeated = caller.append(session, k[:, :, :6], v[:, :, :6], position=0)

    assert (repeated.status, repeated.content) == (200, first.content)
    assert caller.snapshot(session) == before


def test_repetition_that_is_not_finite_is_rejected(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 3, 64)
    caller.append(session, k, v)

    response = caller.append(session, k * np.float16(np.inf), v, position=0)

    response.problem(422, "non-finite")


def test_repetition_inside_a_window_is_recognised(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 700, 64)
    caller.put(f"/sessions/{session}", {"window": 300})
    caller.append(session, k[:, :, :600], v[:, :, :600])
    caller.append(session, k[:, :, 600:], v[:, :, 600:])

    inside = caller.append(session, k[:, :, 400:], v[:, :, 400:], position=400)
    partly = caller.append(session, k[:, :, :401], v[:, :, :401], position=0)
    outside = caller.append(session, k[:, :, :400], v[:, :, :400], position=0)

    assert (inside.status, partly.status) == (200, 200)
    assert outside.problem(409, "position-conflict")["length"] == 700


def test_append_without_position_is_never_a_repetition(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 3, 64)

    responses = [caller.append(session, k, v) for _ in range(3)]

    assert [response.body["position"] for response in responses] == [0, 3, 6]


# Many clients

THREADS, SESSIONS, STEPS, LONGEST = 16, 12, 40, 400


class Script:
    """Expected content of every session at every position, the same for all writers."""

    def __init__(self) -> None:
        shape = (SESSIONS, 1, 2, LONGEST, 64)
        self.k, self.v = (RNG.standard_normal(shape).astype(np.float16) for _ in "kv")
        self._encoded = [reference.encode(values, DEFAULT.at(64)) for values in (self.k, self.v)]

    def is_right(self, which: int, body: Json, start: int, stop: int) -> bool:
        """Whether a response has exactly these tokens of a session."""
        return all(
            self._part(encoded, which, start, stop) == body[name]
            for name, encoded in zip("kv", self._encoded, strict=True)
        )

    @staticmethod
    def _part(encoded: Encoded, which: int, start: int, stop: int) -> Json:
        packed, norms = (part[which, :, :, start:stop] for part in (encoded.packed, encoded.norms))
        return {"packed": tensor(packed), "norms": tensor(norms)}


def test_concurrent_appends_reads_and_deletes_are_consistent(
    server: RunningService, caller: Caller, session: str
) -> None:
    script = Script()

    def append(own: Caller, rng: random.Random, which: int, length: int) -> tuple[Answer, int]:
        """Append a few tokens at a length. Return the response and the new length."""
        stop = min(length + rng.choice([1, 2, 30, 150]), LONGEST)
        k, v = (values[which, :, :, length:stop] for values in (script.k, script.v))
        response = own.append(f"{session}.{which}", k, v, position=length)
        if response.status == 409:
            return response, response.problem(409, "position-conflict")["length"]
        assert response.status in (200, 201), response
        assert script.is_right(which, response.body, length, stop)
        return response, stop

    def read(own: Caller, rng: random.Random, which: int) -> Answer:
        response = own.get(f"/sessions/{session}.{which}/kv", start=rng.choice([0, 0, 1, 100, 255]))
        if response.status == 200 and response.body["k"] is not None:
            assert script.is_right(which, response.body, response.body["start"], response.body["stop"])
        return response

    def act(number: int) -> Counter[tuple[str, int]]:
        rng, seen, lengths = random.Random(number), Counter[tuple[str, int]](), [0] * SESSIONS
        with Caller(server.url) as own:
            for _ in range(STEPS):
                which, what = (
                    rng.randrange(SESSIONS),
                    rng.choice(["append"] * 12 + ["read"] * 6 + ["list", "info", "delete"]),
                )
                if what == "append":
                    response, lengths[which] = append(own, rng, which, lengths[which] % LONGEST)
                elif what == "read":
                    response = read(own, rng, which)
                elif what == "list":
                    response = own.get("/sessions", prefix=session)
                elif what == "info":
                    response = own.get(f"/sessions/{session}.{which}")
                else:
                    response = own.delete(f"/sessions/{session}.{which}")
                seen[what, response.status] += 1
        return seen

    seen: Counter[tuple[str, int]] = sum(at_once(THREADS, act), Counter())

    # A read may start beyond the end (422). Any session may not exist yet, or no longer (404).
    may = {"append": {200, 201, 409}, "read": {200, 404, 422}, "list": {200}, "info": {200, 404}, "delete": {204, 404}}
    assert seen.total() == THREADS * STEPS
    assert [(what, status) for what, status in seen if status not in may[what]] == []
    assert min(seen["append", 200], seen["append", 409], seen["read", 200], seen["delete", 204]) > 0, seen
    for which in range(SESSIONS):
        caller.delete(f"/sessions/{session}.{which}")
    assert caller.get("/sessions", prefix=session).body["sessions"] == []
