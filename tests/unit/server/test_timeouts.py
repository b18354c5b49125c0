"""ProgressTimeout and the timeouts of connections, on a clock that the test sets."""

import pytest

from hadakv_service.server.timeouts import ConnectionTimeouts, Limits, ProgressTimeout

SECONDS = 10


def first_expiry(checks: list[tuple[float, float]]) -> float | None:
    """Return the time of the first check that finds the timeout expired. A check is a time and the progress so far."""
    timeout, activity = ProgressTimeout(), ("body", "request")
    return next((now for now, progress in checks if timeout.expired(now, activity, progress, SECONDS)), None)


def test_timeout_without_progress_expires() -> None:
    assert first_expiry([(now, 0) for now in range(100, 200)]) == 100 + SECONDS + 1
    assert first_expiry([(now, 0) for now in range(100, 100 + SECONDS + 1)]) is None


def test_timeout_with_steady_progress_never_expires() -> None:
    assert first_expiry([(now, now) for now in range(1000)]) is None


def test_timeout_with_slightly_slow_progress_expires() -> None:
    assert first_expiry([(now, 0.9 * now) for now in range(1000)]) == pytest.approx(SECONDS / 0.1 + 1, abs=1)


def test_timeout_after_fast_start_is_not_longer() -> None:
    fast = [(now, 1000 * now) for now in range(20)]

    assert first_expiry([*fast, *[(now, 20_000) for now in range(20, 100)]]) == 20 + SECONDS + 1


def test_blocked_time_does_not_count() -> None:
    timeout = ProgressTimeout()
    expired = [timeout.expired(now, ("body", "request"), 0, SECONDS, is_blocked=now < 500) for now in range(600)]

    assert expired.index(True) == 499 + SECONDS + 1


def test_new_activity_restarts_the_timeout() -> None:
    timeout = ProgressTimeout()
    for now in range(100):
        one, other = object(), object()
        assert not timeout.expired(now, ("head", one), 0, SECONDS)
        assert not timeout.expired(now + SECONDS, ("head", other), 0, SECONDS), "same kind, other object"
        assert not timeout.expired(now + 2 * SECONDS, ("body", other), 0, SECONDS), "other kind, same object"


def test_equal_objects_are_different_activities() -> None:
    timeout = ProgressTimeout()
    heads: list[dict[str, str]] = [{}, {}]

    assert not timeout.expired(0, ("head", heads[0]), 0, SECONDS)
    assert not timeout.expired(100, ("head", heads[1]), 0, SECONDS)


def test_reset_restarts_the_timeout() -> None:
    timeout = ProgressTimeout()
    timeout.expired(0, ("body", "request"), 0, SECONDS)
    timeout.reset()

    assert not timeout.expired(100, ("body", "request"), 0, SECONDS)


def connection_timeouts() -> ConnectionTimeouts:
    return ConnectionTimeouts(Limits(1 << 16, 10, 75.0, 10.0, 20.0, 1000))


def test_idle_and_head_timeouts_are_separate() -> None:
    timeouts, last = connection_timeouts(), object()

    assert not timeouts.is_idle_too_long(0, last)
    assert not timeouts.is_idle_too_long(74, last)
    assert not timeouts.is_head_late(75, last, is_blocked=False)
    assert timeouts.is_head_late(86, last, is_blocked=False)


def test_stalls_are_measured_by_the_minimum_rate() -> None:
    timeouts, request, response = connection_timeouts(), object(), object()

    bodies = [timeouts.is_body_stalled(now, request, nbytes, is_blocked=False) for now, nbytes in _TRANSFER]
    responses = [timeouts.is_response_stalled(now, response, 9999 - nbytes) for now, nbytes in _TRANSFER]

    assert bodies == responses == [False, False, True]


# Times, and the bytes transferred so far: 5 seconds' worth, then nothing.
_TRANSFER = [(0, 0), (24, 5000), (26, 5000)]
