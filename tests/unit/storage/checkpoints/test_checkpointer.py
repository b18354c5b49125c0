"""Checkpointer: what a crash leaves of sessions that were written in the background."""

import logging
from pathlib import Path

import pytest

from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.storage.disk.interface import DiskUnavailable
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import SessionStore
from support.inputs.checkpointed import DISK, SECONDS, Place, spill, tokens
from support.inputs.sized_sessions import ANN, BACKEND, BOB, CID, DAN, TOKEN, append, commit, opened


def test_idle_session_survives_a_crash(place: Place) -> None:
    spill(place.store, ANN, 300)
    place.clock.now += SECONDS / 3
    place.checkpoint()
    lag = place.store.checkpoints.lag_seconds

    spill(place.store, ANN, 20)

    assert lag == 0
    assert tokens(place.crash(), ANN) == 300


def test_session_that_never_idles_survives_a_crash(place: Place) -> None:
    began, lags = place.clock.now, []
    while place.clock.now < began + 5 * SECONDS:
        spill(place.store, ANN, 1)
        place.clock.now += SECONDS / 50
        place.checkpoint()
        lags.append(place.store.checkpoints.lag_seconds)

    kept = tokens(place.crash(), ANN)

    assert max(lags) <= SECONDS
    assert kept is not None
    assert 200 <= kept <= 250


def test_durabilities_other_than_spill_are_not_checkpointed(place: Place) -> None:
    append(place.store, ANN, 10, durability="memory")
    append(place.store, BOB, 10, durability="ack")
    assert not place.store.group_commit()
    place.clock.now += SECONDS

    assert (place.checkpoint(), place.store.checkpoints.lag_seconds) == (0, 0)


def test_session_without_tokens_is_checkpointed(place: Place) -> None:
    commit(place.store, ANN, opened(durability="spill"))
    place.clock.now += SECONDS
    place.checkpoint()

    assert tokens(place.crash(), ANN) == 0


def test_unchanged_session_is_written_once(place: Place) -> None:
    spill(place.store, ANN, 300)
    for _ in range(3):
        place.clock.now += SECONDS
        place.checkpoint()

    assert place.store.checkpoints.sessions == 1
    assert place.store.checkpoints.nbytes == 300 * TOKEN


def test_growing_session_writes_its_new_pages_only(place: Place) -> None:
    spill(place.store, ANN, PAGE_TOKENS)
    for _ in range(3):
        place.clock.now += SECONDS
        place.checkpoint()
        spill(place.store, ANN, 5)

    assert place.store.checkpoints.nbytes == (PAGE_TOKENS + 10) * TOKEN


# Large sessions, and little space


def test_large_session_is_written_in_several_steps(place: Place) -> None:
    place.store.checkpoints.step_nbytes = 2 * PAGE_TOKENS * TOKEN
    for _ in range(9):
        spill(place.store, ANN, PAGE_TOKENS)
    place.clock.now += SECONDS
    assert place.begin()
    place.store.checkpoints.settle()
    lag = place.store.checkpoints.lag_seconds

    steps = place.checkpoint()

    assert (lag, steps, place.store.checkpoints.lag_seconds) == (SECONDS, 4, 0)
    assert tokens(place.crash(), ANN) == 9 * PAGE_TOKENS


def test_crash_between_the_steps_leaves_nothing_of_the_session(place: Place) -> None:
    place.store.checkpoints.step_nbytes = PAGE_TOKENS * TOKEN
    for _ in range(3):
        spill(place.store, ANN, PAGE_TOKENS)
    place.clock.now += SECONDS
    assert place.begin()
    place.store.checkpoints.settle()

    store = place.crash()

    assert tokens(store, ANN) is None
    assert store.disk.used == 0


@pytest.mark.parametrize("settled", [True, False])
def test_session_deleted_between_the_steps_leaves_no_pages(place: Place, settled: bool) -> None:
    place.store.checkpoints.step_nbytes = PAGE_TOKENS * TOKEN
    for _ in range(3):
        spill(place.store, ANN, PAGE_TOKENS)
    place.clock.now += SECONDS
    assert place.begin()
    if settled:
        place.store.checkpoints.settle()
        assert place.store.disk.used > 0

    place.store.delete(ANN)
    place.checkpoint()

    assert place.store.disk.used == 0


def test_merged_pages_are_deleted_in_the_background(place: Place) -> None:
    for _ in range(PAGE_TOKENS):
        spill(place.store, ANN, 1)
        place.clock.now += SECONDS
        place.checkpoint()
    place.checkpoint()

    assert len(list(place.store.get(ANN).session.all_pages())) == 1
    assert place.store.disk.used == place.store.disk.page_nbytes(PAGE_TOKENS * TOKEN) + 512


def test_checkpoint_deletes_no_session_that_is_in_memory(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    spill(place.store, ANN, 300)
    spill(place.store, BOB, 300)
    place.clock.now += SECONDS
    place.checkpoint()
    place.store.disk.budget = place.store.disk.used  # type: ignore[misc]  # there is no more space
    spill(place.store, CID, 300)
    place.clock.now += SECONDS

    with caplog.at_level(logging.INFO):
        for _ in range(3):
            place.checkpoint()
            place.clock.now += SECONDS
        place.store.disk.budget = DISK  # type: ignore[misc]  # there is space again
        place.checkpoint()

    assert [tokens(place.store, key) for key in (ANN, BOB, CID)] == [300] * 3
    assert place.store.checkpoints.lag_seconds == 0
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(":")[0] for message in messages] == [
        "checkpoint not written",
        "checkpoints are written again",
    ]


def test_checkpoint_deletes_older_sessions_that_are_on_disk_only(place: Place) -> None:
    spill(place.store, ANN, 300)
    assert place.store.close(float("inf")) == 0
    used = place.store.disk.used
    place.clock.now += 1
    store = place.open(disk=used + 100)
    spill(store, BOB, 300)
    place.clock.now += SECONDS

    place.checkpoint()

    assert (tokens(store, ANN), store.evictions) == (None, 1)
    assert tokens(place.crash(disk=used + 100), BOB) == 300


def test_failed_write_is_repeated_and_loses_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spill(place.store, ANN, 300)
    place.clock.now += SECONDS

    def fail(**_: object) -> None:
        raise DiskUnavailable("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place.store.disk, "transaction", fail)
        for _ in range(3):
            place.checkpoint()
            spill(place.store, ANN, 1)
            place.clock.now += SECONDS
    lag = place.store.checkpoints.lag_seconds

    place.checkpoint()

    assert (lag, place.store.checkpoints.lag_seconds) == (4 * SECONDS, 0)
    assert place.store.checkpoints.failures == 3
    assert sum("checkpoint not written" in record.getMessage() for record in caplog.records) == 1
    assert tokens(place.crash(), ANN) == 303


def test_many_sessions_share_few_transactions(place: Place) -> None:
    for i in range(300):
        spill(place.store, ("", f"{i:03}"), 1)
    spill(place.store, DAN, 1)
    place.clock.now += SECONDS

    assert place.checkpoint() == 2
    assert len(place.crash()) == 301


def test_without_checkpoints_nothing_is_written(tmp_path: Path) -> None:
    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, DISK), backend=BACKEND)
    spill(store, ANN, 300)

    assert not store.checkpoints.has_work
    assert store.checkpoints.begin() is None
    assert store.disk.used == 0
    store.close(float("inf"))


def test_evicted_session_is_synced_within_the_interval(place: Place) -> None:
    spill(place.store, ANN, 300)
    for _ in place.store._evictor.ensure(place.store.memory.limit, ()):
        pass
    lags = [place.store.checkpoints.lag_seconds]
    for _ in range(2):
        place.clock.now += SECONDS / 2
        lags.append(place.store.checkpoints.lag_seconds)
        place.checkpoint()

    assert place.store.in_memory == 0
    assert [*lags, place.store.checkpoints.lag_seconds] == [0, SECONDS / 2, SECONDS, 0]
