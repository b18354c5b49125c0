"""Checkpointer: sessions that change while they are written in the background."""

import pytest

from hadakv_service.storage.disk.interface import DiskUnavailable
from support.inputs.checkpointed import SECONDS, Place, spill, tokens
from support.inputs.sized_sessions import ANN, BACKEND, BOB, TOKEN, commit, fork


def test_append_during_the_write_is_kept_for_the_next_one(place: Place) -> None:
    spill(place.store, ANN, 300)
    place.clock.now += SECONDS
    assert place.begin()
    spill(place.store, ANN, 20)
    place.clock.now += SECONDS
    place.checkpoint()

    assert tokens(place.crash(), ANN) == 320


def test_append_during_the_write_waits_for_no_disk(place: Place) -> None:
    spill(place.store, ANN, 300)
    place.clock.now += SECONDS
    assert place.begin()

    spill(place.store, ANN, 20)
    spill(place.store, BOB, 300)

    assert place.store._writer._in_flight


def test_clean_shutdown_writes_what_was_appended_during_the_write(place: Place) -> None:
    spill(place.store, ANN, 300)
    place.clock.now += SECONDS
    assert place.begin()
    spill(place.store, ANN, 20)

    assert place.store.close(float("inf")) == 0

    assert tokens(place.open(), ANN) == 320


@pytest.mark.parametrize("then", [0, 50])
def test_truncate_during_the_write_deletes_the_tokens(place: Place, then: int) -> None:
    spill(place.store, ANN, 300)
    place.clock.now += SECONDS
    assert place.begin()
    commit(place.store, ANN, place.store.get(ANN).session.truncate(260, BACKEND))
    assert not place.store.group_commit()
    if then:
        spill(place.store, ANN, then)

    assert tokens(place.crash(), ANN) is None


def test_checkpoint_leaves_a_truncation_to_its_group_commit(place: Place) -> None:
    """The group commit after the batch deletes the manifest of the longer session."""
    spill(place.store, ANN, 300)
    place.clock.now += SECONDS
    place.checkpoint()
    spill(place.store, ANN, 10)
    place.clock.now += SECONDS
    commit(place.store, ANN, place.store.get(ANN).session.truncate(260, BACKEND))

    place.begin()
    assert not place.store.group_commit()
    place.clock.now += SECONDS
    place.checkpoint()

    assert tokens(place.crash(), ANN) == 260


def test_rolled_back_truncation_after_a_checkpoint_keeps_all(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise DiskUnavailable("no space left on device")

    spill(place.store, ANN, 300)
    place.clock.now += SECONDS
    place.checkpoint()
    spill(place.store, ANN, 10)
    place.clock.now += SECONDS
    commit(place.store, ANN, place.store.get(ANN).session.truncate(260, BACKEND))

    place.begin()
    with monkeypatch.context() as patch:
        patch.setattr(place.store._writer, "write", fail)
        assert place.store.group_commit()
    place.store.checkpoints.settle()
    assert place.store.close(float("inf")) == 0

    assert tokens(place.open(), ANN) == 310


def test_delete_during_the_write_deletes_the_session(place: Place) -> None:
    spill(place.store, ANN, 300)
    place.clock.now += SECONDS
    assert place.begin()
    assert place.store.delete(ANN)

    assert tokens(place.crash(), ANN) is None


def test_id_used_again_during_the_write_has_its_new_tokens(place: Place) -> None:
    spill(place.store, ANN, 300)
    place.clock.now += SECONDS
    assert place.begin()
    assert place.store.delete(ANN)
    spill(place.store, ANN, 7)
    place.clock.now += SECONDS
    place.checkpoint()

    assert tokens(place.crash(), ANN) == 7


def test_fork_during_the_write_shares_the_written_pages(place: Place) -> None:
    spill(place.store, ANN, 300)
    place.clock.now += SECONDS
    assert place.begin()
    fork(place.store, ANN, BOB, place.store.get(ANN).session)
    used = place.store.disk.used
    place.clock.now += SECONDS
    place.checkpoint()

    assert place.store.checkpoints.nbytes == 300 * TOKEN
    assert place.store.disk.used > used
    store = place.crash()
    assert (tokens(store, ANN), tokens(store, BOB)) == (300, 300)


def test_session_evicted_during_the_write_is_complete(place: Place) -> None:
    spill(place.store, ANN, 300)
    place.clock.now += SECONDS
    assert place.begin()
    for _ in place.store._evictor.ensure(place.store.memory.limit, ()):
        pass

    assert place.store.in_memory == 0
    assert tokens(place.store, ANN) == 300
    assert tokens(place.crash(), ANN) == 300
