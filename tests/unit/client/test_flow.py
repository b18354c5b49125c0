"""Retry policy, its delays, and append positions. The tests drive the flows step by step."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hadakv_client import Busy, ConnectionLost, PositionConflict, Retries, SessionNotFound, Timeout
from hadakv_client.flow import SessionFlows
from hadakv_client.http import calls
from hadakv_client.http.kv import keys_values
from hadakv_client.protocol import Request, Response
from hadakv_client.retries import Flow, Sleep, with_retries

KV = (np.ones((1, 1, 1, 64), np.float16),) * 2
GET = calls.info("a")
APPEND_AT = calls.append("a", KV, 0, 7, None, minimal=True)
APPEND_AT_END = calls.append("a", KV, 0, "end", None, minimal=True)
LOST, NOT_SENT = ConnectionLost("lost"), ConnectionLost("refused", sent=False)
TIMED_OUT = Timeout("timeout")
BUSY, BUSY_WITHOUT_RETRY_AFTER = Busy(503, retry_after=2.0), Busy(503)
max_jitter, min_jitter = (lambda: 1.0), (lambda: 0.0)


def error_response(status: int, slug: str, **fields: Any) -> Response:
    return Response(status, {}, json.dumps({"type": f"urn:hadakv:problem:{slug}", **fields}).encode())


def delays_until_given_up(flow: Flow[Any], error: Exception) -> list[float]:
    """Fail every attempt with the same error. Return the delays before the retries, in seconds."""
    delays: list[float] = []
    with pytest.raises(type(error)):
        _fail_forever(flow, error, delays)
    return delays


def _fail_forever(flow: Flow[Any], error: Exception, delays: list[float]) -> None:
    step = next(flow)
    while True:
        assert isinstance(step, Request)
        step = flow.throw(error)
        assert isinstance(step, Sleep)
        delays.append(step.seconds)
        step = flow.send(None)


def test_delays_double_up_to_a_maximum() -> None:
    retries = Retries(limit=6, initial_backoff_seconds=1.0, max_backoff_seconds=9.0, random=max_jitter)

    assert delays_until_given_up(with_retries(GET, retries), LOST) == [1.0, 2.0, 4.0, 8.0, 9.0, 9.0]


def test_jitter_halves_a_delay_at_most() -> None:
    retries = Retries(limit=3, initial_backoff_seconds=1.0, random=min_jitter)

    assert delays_until_given_up(with_retries(GET, retries), LOST) == [0.5, 1.0, 2.0]


@given(st.integers(0, 2000), st.floats(0, 1))
def test_delays_stay_within_the_maximum(attempt: int, jitter: float) -> None:
    retries = Retries(limit=5000, random=lambda: jitter)

    delay = retries.delay(LOST, attempt, GET.request)

    assert delay is not None
    assert 0.05 <= delay <= 10.0


@pytest.mark.parametrize("error", [LOST, NOT_SENT, TIMED_OUT, BUSY], ids=["lost", "not sent", "timeout", "busy"])
@pytest.mark.parametrize("call", [GET, APPEND_AT, calls.delete("a")], ids=["info", "append", "delete"])
def test_idempotent_call_is_retried_after_any_error(call: Any, error: Any) -> None:
    assert len(delays_until_given_up(with_retries(call, Retries(3)), error)) == 3


@pytest.mark.parametrize(
    ("error", "times"),
    [(LOST, 0), (TIMED_OUT, 0), (NOT_SENT, 3), (BUSY, 3)],
    ids=["lost", "timeout", "not sent", "busy"],
)
def test_non_idempotent_call_is_retried_only_if_not_sent_or_busy(error: Any, times: int) -> None:
    assert len(delays_until_given_up(with_retries(APPEND_AT_END, Retries(3)), error)) == times


def test_retry_waits_for_retry_after_plus_backoff() -> None:
    retries = Retries(limit=2, initial_backoff_seconds=1.0, random=max_jitter)

    assert delays_until_given_up(with_retries(GET, retries), BUSY) == [3.0, 4.0]


@pytest.mark.parametrize("error", [BUSY_WITHOUT_RETRY_AFTER, Busy(503, retry_after=11.0)])
def test_no_retry_if_retry_after_is_too_long_or_missing(error: Busy) -> None:
    assert delays_until_given_up(with_retries(GET, Retries(3)), error) == []


def test_limit_zero_makes_one_attempt() -> None:
    assert delays_until_given_up(with_retries(GET, Retries(0)), LOST) == []


def test_rejected_request_is_not_retried() -> None:
    flow = with_retries(APPEND_AT, Retries(3))
    next(flow)

    with pytest.raises(PositionConflict):
        flow.send(error_response(409, "position-conflict", length=3))


def test_every_attempt_sends_the_same_request() -> None:
    flow = with_retries(APPEND_AT, Retries(1))

    first = next(flow)
    flow.throw(LOST)
    second = flow.send(None)

    assert first is second


def test_delete_after_busy_does_not_accept_404() -> None:
    flow = with_retries(calls.delete("a"), Retries(3))
    next(flow)
    flow.throw(BUSY)
    flow.send(None)

    with pytest.raises(SessionNotFound):
        flow.send(error_response(404, "session-not-found"))


def test_cancelled_append_leaves_the_end_unknown() -> None:
    flows = SessionFlows("a", None, Retries(0))
    appending = flows.append(keys_values(*KV), 0, None, minimal=True)
    next(appending)
    appending.send(error_response(404, "session-not-found"))
    appending.close()

    first_step = next(flows.append(keys_values(*KV), 0, None, minimal=True))

    assert isinstance(first_step, Request)
    assert first_step.method == "GET"
