"""When a call is made again, after how long, and where an append goes: flows driven by hand."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hadakv_client import Busy, ConnectionLost, PositionConflict, Retries, SessionNotFound, Timeout
from hadakv_client.flow import Flow, Pause, SessionFlows, attempts
from hadakv_client.http import calls
from hadakv_client.protocol import Request, Response

KV = (np.ones((1, 1, 1, 64), np.float16),) * 2
GET = calls.info("a")
APPEND_AT = calls.append("a", KV, 0, 7, None, minimal=True)
APPEND_SOMEWHERE = calls.append("a", KV, 0, "end", None, minimal=True)
LOST, NEVER_SENT = ConnectionLost("lost"), ConnectionLost("refused", sent=False)
LATE = Timeout("late")
BUSY, BUSY_WITHOUT_END = Busy(503, retry_after=2.0), Busy(503)
unlucky, lucky = (lambda: 1.0), (lambda: 0.0)


def refused(status: int, slug: str, **fields: Any) -> Response:
    return Response(status, {}, json.dumps({"type": f"urn:hadakv:problem:{slug}", **fields}).encode())


def pauses_until_given_up(flow: Flow[Any], error: Exception) -> list[float]:
    """Fail every attempt with the same error."""
    pauses: list[float] = []
    with pytest.raises(type(error)):
        _fail_forever(flow, error, pauses)
    return pauses


def _fail_forever(flow: Flow[Any], error: Exception, pauses: list[float]) -> None:
    step = next(flow)
    while True:
        assert isinstance(step, Request)
        pause = flow.throw(error)
        assert isinstance(pause, Pause)
        pauses.append(pause.seconds)
        step = flow.send(None)


def test_pauses_double_up_to_a_limit() -> None:
    retries = Retries(limit=6, first_seconds=1.0, most_seconds=9.0, random=unlucky)

    assert pauses_until_given_up(attempts(GET, retries), LOST) == [1.0, 2.0, 4.0, 8.0, 9.0, 9.0]


def test_luck_shortens_a_pause_by_up_to_a_half() -> None:
    retries = Retries(limit=3, first_seconds=1.0, random=lucky)

    assert pauses_until_given_up(attempts(GET, retries), LOST) == [0.5, 1.0, 2.0]


@given(st.integers(0, 2000), st.floats(0, 1))
def test_no_pause_is_longer_than_the_longest(attempt: int, luck: float) -> None:
    retries = Retries(limit=5000, random=lambda: luck)

    pause = retries.pause(LOST, attempt, GET.request)

    assert pause is not None
    assert 0.05 <= pause <= 10.0


@pytest.mark.parametrize("error", [LOST, NEVER_SENT, LATE, BUSY], ids=["lost", "never sent", "late", "busy"])
@pytest.mark.parametrize("call", [GET, APPEND_AT, calls.delete("a")], ids=["info", "append", "delete"])
def test_what_may_be_done_twice_is_tried_again(call: Any, error: Any) -> None:
    assert len(pauses_until_given_up(attempts(call, Retries(3)), error)) == 3


@pytest.mark.parametrize(
    ("error", "times"), [(LOST, 0), (LATE, 0), (NEVER_SENT, 3), (BUSY, 3)], ids=["lost", "late", "never sent", "busy"]
)
def test_what_may_not_be_done_twice_is_tried_again_only_if_it_was_not_done(error: Any, times: int) -> None:
    assert len(pauses_until_given_up(attempts(APPEND_SOMEWHERE, Retries(3)), error)) == times


def test_a_busy_service_is_left_alone_for_as_long_as_it_asks() -> None:
    retries = Retries(limit=2, first_seconds=1.0, random=unlucky)

    assert pauses_until_given_up(attempts(GET, retries), BUSY) == [3.0, 4.0]


@pytest.mark.parametrize("error", [BUSY_WITHOUT_END, Busy(503, retry_after=11.0)])
def test_a_service_that_is_busy_for_long_or_nobody_knows_how_long_is_not_waited_for(error: Busy) -> None:
    assert pauses_until_given_up(attempts(GET, Retries(3)), error) == []


def test_without_retries_there_is_one_attempt() -> None:
    assert pauses_until_given_up(attempts(GET, Retries(0)), LOST) == []


def test_a_refusal_is_not_tried_again() -> None:
    flow = attempts(APPEND_AT, Retries(3))
    next(flow)

    with pytest.raises(PositionConflict):
        flow.send(refused(409, "position-conflict", length=3))


def test_every_attempt_sends_the_same_request() -> None:
    flow = attempts(APPEND_AT, Retries(1))

    first = next(flow)
    flow.throw(LOST)
    second = flow.send(None)

    assert first is second


def test_a_delete_that_was_only_turned_away_does_not_count_as_done() -> None:
    flow = attempts(calls.delete("a"), Retries(3))
    next(flow)
    flow.throw(BUSY)
    flow.send(None)

    with pytest.raises(SessionNotFound):
        flow.send(refused(404, "session-not-found"))


def test_an_abandoned_append_leaves_the_end_unknown() -> None:
    flows = SessionFlows("a", None, Retries(0))
    learning = flows.append(*KV, 0, None, minimal=True)
    next(learning)
    learning.send(refused(404, "session-not-found"))
    learning.close()

    first_step = next(flows.append(*KV, 0, None, minimal=True))

    assert isinstance(first_step, Request)
    assert first_step.method == "GET"
