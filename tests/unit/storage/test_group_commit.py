"""GroupCommit: rollback, and stale manifests."""

from pathlib import Path

import pytest

from hadakv_service.device.jobs import run_to_completion
from hadakv_service.errors import InsufficientStorage
from hadakv_service.storage.disk.interface import DiskUnavailable
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import SessionStore
from support.inputs.sized_sessions import ANN, BACKEND, TOKEN, append, commit, opened


def open_store(directory: Path) -> SessionStore:
    return SessionStore(1 << 20, disk=SqliteStore(directory, 1 << 30), backend=BACKEND)


@pytest.mark.parametrize("length", [9, 300])
def test_truncated_tokens_do_not_reappear_after_a_crash(tmp_path: Path, length: int) -> None:
    store = open_store(tmp_path)
    append(store, ANN, 300, durability="spill")
    assert store._write_back.checkpoint(float("inf")) == 0

    commit(store, ANN, store.get(ANN).session.truncate(length, BACKEND))
    assert not store.group_commit()
    store.disk.close()

    store = open_store(tmp_path)
    assert (store.find(ANN) is not None) == (length == 300)
    store.close(float("inf"))


def test_failed_group_commit_restores_the_old_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    append(store, ANN, 10, durability="ack")
    assert not store.group_commit()
    stored = store.memory.stored

    def fail(_: object) -> None:
        raise DiskUnavailable("no space left on device")

    append(store, ANN, 20)
    with monkeypatch.context() as patch:
        patch.setattr(store._writer, "write", fail)
        failed = store.group_commit()

    assert [type(error) for error in failed.values()] == [InsufficientStorage]
    assert store.get(ANN).session.nbytes == 10 * TOKEN
    assert (store.memory.stored, store.memory.reserved) == (stored, 0)
    store.close(float("inf"))


def test_import_cannot_be_repeated_after_a_failed_group_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device runs a job again alone if there was no space for its batch."""
    store = open_store(tmp_path)
    staged = store.stage(ANN, opened(durability="ack"))
    staged.open({ANN})
    run_to_completion(staged.commit({ANN}))

    def fail(_: object) -> None:
        raise DiskUnavailable("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store._writer, "write", fail)
        assert ANN in store.group_commit()

    with pytest.raises(InsufficientStorage, match="Nothing was stored"):
        run_to_completion(staged.commit({ANN}))
    assert len(store) == 0
    store.close(float("inf"))
