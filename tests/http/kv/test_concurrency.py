"""Many clients at once: every token once, in an order all agree on, and retries that change nothing."""

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
# K as float16 is kept as it is, so a token read back names who wrote it.
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
    """`count` tokens of two layers and one head, whose content says who wrote them and in which order."""
    k = np.zeros((2, 1, count, 64), np.float16)
    k[..., 0], k[..., 1], k[..., 2] = writer, number, np.arange(count)
    v = np.random.default_rng((writer, number)).standard_normal(k.shape).astype(np.float16)
    return k, v


def names(held: Json) -> list[tuple[int, int, int]]:
    """Writer, number and place in its append of each token a session holds; all layers must agree."""
    values = array(held["k"]["values"])[..., :3].astype(int)
    assert (values == values[:1]).all(), "the layers disagree"
    return [(int(w), int(n), int(i)) for w, n, i in values[0, 0]]


@pytest.mark.parametrize("writers", [2, 8])
def test_every_token_of_writers_at_once_is_there_once_where_its_answer_said(
    server: RunningService, caller: Caller, session: str, writers: int
) -> None:
    each = 240 // writers

    def write(writer: int) -> dict[int, tuple[int, int, int]]:
        told: dict[int, tuple[int, int, int]] = {}
        with Caller(server.url) as own:
            for number in range(each):
                count = 1 + (writer + number) % 3
                answer = own.append(session, *token(writer, number, count), codec=NAMED)
                assert answer.status in (200, 201), answer
                told |= {answer.body["position"] + i: (writer, number, i) for i in range(count)}
        return told

    answers = at_once(writers, write)

    held = caller.read(session)
    told = {position: name for answer in answers for position, name in answer.items()}
    order = [told[position] for position in range(len(told))]
    assert len(told) == sum(map(len, answers)) == held["length"]
    assert names(held) == order
    v = np.concatenate(
        [token(writer, number, 1 + (writer + number) % 3)[1] for writer, number, i in order if i == 0], axis=2
    )
    assert held["v"] == stream(v, DEFAULT)
    assert caller.info(session)["nbytes"] == len(told) * 2 * (128 + 36)


def test_only_one_of_several_creates_the_session(server: RunningService, session: str) -> None:
    def write(writer: int) -> int:
        with Caller(server.url) as own:
            return own.append(session, *token(writer, 0), codec=NAMED).status

    statuses = Counter(at_once(8, write))

    assert statuses == {201: 1, 200: 7}


def write_at_positions(url: str, session: str, writer: int, count: int) -> tuple[list[int], int]:
    """Append tokens at positions of one's own count, corrected by conflicts: where they went, and the conflicts."""
    places: list[int] = []
    position = conflicts = 0
    with Caller(url) as own:
        while len(places) < count:
            answer = own.append(session, *token(writer, len(places)), codec=NAMED, position=position)
            if answer.status == 409:
                position = answer.problem(409, "position-conflict")["length"]
                conflicts += 1
                continue
            assert answer.status in (200, 201), answer
            places.append(position)
            position += 1
    return places, conflicts


def test_writers_that_give_positions_sort_it_out_among_themselves(
    server: RunningService, caller: Caller, session: str
) -> None:
    answers = at_once(2, lambda writer: write_at_positions(server.url, session, writer, 150))

    order = names(caller.read(session))
    for writer, (places, _) in enumerate(answers):
        assert [order[place] for place in places] == [(writer, number, 0) for number in range(150)]
    assert len(order) == 300
    assert sum(conflicts for _, conflicts in answers) > 0, "they never met"


def test_the_same_append_sent_by_several_at_once_is_stored_once(
    server: RunningService, caller: Caller, session: str
) -> None:
    k, v = token(3, 4, 5)

    def write(_: int) -> Answer:
        with Caller(server.url) as own:
            return own.append(session, k, v, codec=NAMED, position=0)

    answers = at_once(8, write)

    assert Counter(answer.status for answer in answers) == {201: 1, 200: 7}
    assert len({answer.content for answer in answers}) == 1
    assert caller.info(session)["length"] == 5


# Repeated appends


def pair(*shape: int) -> tuple[NDArray[Any], NDArray[Any]]:
    return tuple(RNG.standard_normal(shape).astype(np.float16) for _ in "kv")  # type: ignore[return-value]


@pytest.mark.parametrize("start", [0, 5, PAGE_TOKENS - 3, PAGE_TOKENS, 2 * PAGE_TOKENS - 1])
@pytest.mark.parametrize("count", [1, 7, PAGE_TOKENS + 1])
@pytest.mark.parametrize("later", [0, 1, 300])
def test_a_repeated_append_answers_the_same_and_changes_nothing(
    caller: Caller, session: str, start: int, count: int, later: int
) -> None:
    k, v = pair(2, 1, start + count + later, 64)
    if start:
        caller.append(session, k[:, :, :start], v[:, :, :start])
    part = slice(start, start + count)
    first = caller.append(session, k[:, :, part], v[:, :, part], position=start)
    if later:
        caller.append(session, k[:, :, start + count :], v[:, :, start + count :])
    before = caller.snapshot(session)

    repeated = [caller.append(session, k[:, :, part], v[:, :, part], position=start) for _ in range(2)]

    assert [answer.status for answer in repeated] == [200, 200]
    assert [answer.content for answer in repeated] == [first.content] * 2
    assert caller.snapshot(session) == before


@pytest.mark.parametrize("codec", [{"kind": "float16"}, {"bits": 8, "norm": "unbiased"}, {"k": {"bits": 2}}], ids=str)
def test_a_repeated_append_is_recognised_with_every_codec(caller: Caller, session: str, codec: Json) -> None:
    k, v = pair(1, 2, 9, 128)
    first = caller.append(session, k, v, codec=codec, position=0)

    repeated = caller.append(session, k, v, codec=codec, position=0)

    assert (repeated.status, repeated.content) == (200, first.content)


def test_a_part_of_what_was_appended_may_be_repeated(caller: Caller, session: str) -> None:
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
def test_other_content_at_a_position_that_is_taken_is_a_conflict(
    caller: Caller, session: str, place: tuple[int, ...], name: str
) -> None:
    k, v = pair(2, 1, 5, 64)
    caller.append(session, k, v)
    before = caller.snapshot(session)
    changed = {"k": k.copy(), "v": v.copy()}
    changed[name][place] += np.float16(3)

    answer = caller.append(session, **changed, position=0)

    assert answer.problem(409, "position-conflict")["length"] == 5
    assert caller.snapshot(session) == before


def test_content_that_differs_only_in_its_norm_is_other_content(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 5, 64)
    first = caller.append(session, k, v)

    answer = caller.append(session, k * np.float16(2), v, position=0)

    doubled = reference.encode(k * np.float16(2), DEFAULT.at(64))
    assert array(first.body["k"]["packed"]).tobytes() == doubled.packed.tobytes()
    answer.problem(409, "position-conflict")


def test_a_repetition_that_reaches_beyond_the_end_is_a_conflict(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 10, 64)
    caller.append(session, k[:, :, :6], v[:, :, :6])
    before = caller.snapshot(session)

    answer = caller.append(session, k, v, position=0)

    assert answer.problem(409, "position-conflict")["length"] == 6
    assert caller.snapshot(session) == before


def test_a_repetition_is_recognised_though_one_of_its_layers_has_grown_since(caller: Caller, session: str) -> None:
    k, v = pair(2, 1, 10, 64)
    first = caller.append(session, k[:, :, :6], v[:, :, :6], position=0)
    caller.append(session, k[:1, :, 6:], v[:1, :, 6:])
    before = caller.snapshot(session)

    repeated = caller.append(session, k[:, :, :6], v[:, :, :6], position=0)

    assert (repeated.status, repeated.content) == (200, first.content)
    assert caller.snapshot(session) == before


def test_a_repetition_that_is_not_finite_is_refused_like_any_other(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 3, 64)
    caller.append(session, k, v)

    answer = caller.append(session, k * np.float16(np.inf), v, position=0)

    answer.problem(422, "non-finite")


def test_a_repetition_inside_a_window_is_recognised(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 700, 64)
    caller.put(f"/sessions/{session}", {"window": 300})
    caller.append(session, k[:, :, :600], v[:, :, :600])
    caller.append(session, k[:, :, 600:], v[:, :, 600:])

    inside = caller.append(session, k[:, :, 400:], v[:, :, 400:], position=400)
    partly = caller.append(session, k[:, :, :401], v[:, :, :401], position=0)
    outside = caller.append(session, k[:, :, :400], v[:, :, :400], position=0)

    assert (inside.status, partly.status) == (200, 200)
    assert outside.problem(409, "position-conflict")["length"] == 700


def test_an_append_without_a_position_is_never_a_repetition(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 3, 64)

    answers = [caller.append(session, k, v) for _ in range(3)]

    assert [answer.body["position"] for answer in answers] == [0, 3, 6]


# A crowd

THREADS, SESSIONS, STEPS, LONGEST = 16, 12, 40, 400


class Script:
    """What every session holds at every position, whoever writes it."""

    def __init__(self) -> None:
        shape = (SESSIONS, 1, 2, LONGEST, 64)
        self.k, self.v = (RNG.standard_normal(shape).astype(np.float16) for _ in "kv")
        self._encoded = [reference.encode(values, DEFAULT.at(64)) for values in (self.k, self.v)]

    def is_right(self, which: int, body: Json, start: int, stop: int) -> bool:
        """Whether an answer has exactly those tokens of a session."""
        return all(
            self._part(encoded, which, start, stop) == body[name]
            for name, encoded in zip("kv", self._encoded, strict=True)
        )

    @staticmethod
    def _part(encoded: Encoded, which: int, start: int, stop: int) -> Json:
        packed, norms = (part[which, :, :, start:stop] for part in (encoded.packed, encoded.norms))
        return {"packed": tensor(packed), "norms": tensor(norms)}


def test_a_crowd_that_appends_reads_and_deletes_gets_the_right_bytes(
    server: RunningService, caller: Caller, session: str
) -> None:
    script = Script()

    def append(own: Caller, rng: random.Random, which: int, length: int) -> tuple[Answer, int]:
        """Append a few tokens behind a length; the answer, and the length now."""
        stop = min(length + rng.choice([1, 2, 30, 150]), LONGEST)
        k, v = (values[which, :, :, length:stop] for values in (script.k, script.v))
        answer = own.append(f"{session}.{which}", k, v, position=length)
        if answer.status == 409:
            return answer, answer.problem(409, "position-conflict")["length"]
        assert answer.status in (200, 201), answer
        assert script.is_right(which, answer.body, length, stop)
        return answer, stop

    def read(own: Caller, rng: random.Random, which: int) -> Answer:
        answer = own.get(f"/sessions/{session}.{which}/kv", start=rng.choice([0, 0, 1, 100, 255]))
        if answer.status == 200 and answer.body["k"] is not None:
            assert script.is_right(which, answer.body, answer.body["start"], answer.body["stop"])
        return answer

    def act(number: int) -> Counter[tuple[str, int]]:
        rng, seen, lengths = random.Random(number), Counter[tuple[str, int]](), [0] * SESSIONS
        with Caller(server.url) as own:
            for _ in range(STEPS):
                which, what = (
                    rng.randrange(SESSIONS),
                    rng.choice(["append"] * 12 + ["read"] * 6 + ["list", "info", "delete"]),
                )
                if what == "append":
                    answer, lengths[which] = append(own, rng, which, lengths[which] % LONGEST)
                elif what == "read":
                    answer = read(own, rng, which)
                elif what == "list":
                    answer = own.get("/sessions", prefix=session)
                elif what == "info":
                    answer = own.get(f"/sessions/{session}.{which}")
                else:
                    answer = own.delete(f"/sessions/{session}.{which}")
                seen[what, answer.status] += 1
        return seen

    seen: Counter[tuple[str, int]] = sum(at_once(THREADS, act), Counter())

    # A read may start beyond the end (422), anything may come before or after a session (404).
    may = {"append": {200, 201, 409}, "read": {200, 404, 422}, "list": {200}, "info": {200, 404}, "delete": {204, 404}}
    assert seen.total() == THREADS * STEPS
    assert [(what, status) for what, status in seen if status not in may[what]] == []
    assert min(seen["append", 200], seen["append", 409], seen["read", 200], seen["delete", 204]) > 0, seen
    for which in range(SESSIONS):
        caller.delete(f"/sessions/{session}.{which}")
    assert caller.get("/sessions", prefix=session).body["sessions"] == []
