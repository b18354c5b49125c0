"""DirtySessions: which sessions are due, in which order, and the oldest change that is not on disk."""

import pytest

from hadakv_service.storage.checkpoints.dirty_sessions import DirtySessions
from support.inputs.sized_sessions import ANN, BOB, CID, Clock

SECONDS = 100.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dirty(clock: Clock) -> DirtySessions:
    return DirtySessions(clock)


def test_idle_session_is_due_before_one_in_use(clock: Clock, dirty: DirtySessions) -> None:
    dirty.mark(ANN)
    dirty.mark(BOB)
    clock.now += 26
    dirty.mark(ANN)

    assert list(dirty.due(SECONDS)) == [BOB]


def test_session_that_never_idles_is_due_within_the_interval(clock: Clock, dirty: DirtySessions) -> None:
    began = clock.now
    while ANN not in dirty.due(SECONDS):
        dirty.mark(ANN)
        clock.now += 1

    assert 0.7 * SECONDS < clock.now - began < SECONDS


def test_overdue_session_comes_before_idle_ones(clock: Clock, dirty: DirtySessions) -> None:
    dirty.mark(ANN)
    clock.now += 30
    dirty.mark(BOB)
    clock.now += 70
    dirty.mark(ANN)
    dirty.mark(CID)
    clock.now += 1

    assert list(dict.fromkeys(dirty.due(SECONDS))) == [ANN, BOB]


def test_oldest_change_stays_until_it_is_written(clock: Clock, dirty: DirtySessions) -> None:
    first = clock.now
    dirty.mark(ANN)
    clock.now += 1
    dirty.mark(BOB)
    dirty.start([ANN])
    clock.now += 1
    dirty.mark(ANN)

    while_writing = dirty.oldest
    dirty.end(written=True)

    assert (while_writing, dirty.oldest) == (first, first + 1)
    dirty.discard(BOB)
    assert dirty.oldest == first + 2
    dirty.discard(ANN)
    assert dirty.oldest is None


def test_failed_write_keeps_the_time_of_the_oldest_change(clock: Clock, dirty: DirtySessions) -> None:
    first = clock.now
    for key in (ANN, BOB, CID):
        dirty.mark(key)
        clock.now += 1
    dirty.start([BOB, ANN])
    dirty.mark(BOB)

    dirty.end(written=False)
    clock.now += SECONDS

    assert dirty.oldest == first
    assert list(dict.fromkeys(dirty.due(SECONDS))) == [ANN, BOB, CID]
