"""RetiredStore: sessions of earlier runs, while the service uses no disk."""

from pathlib import Path

import pytest

from hadakv_service.device.jobs import run_to_completion
from hadakv_service.errors import QuotaExceeded
from hadakv_service.storage.disk.retired_store import RetiredStore
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import SessionStore
from hadakv_service.tenants.quotas import Quota, QuotaTable
from support.inputs.sized_sessions import ANN, BACKEND, BOB, TOKEN, append, grown, opened


def test_rejected_commit_keeps_the_session_of_an_earlier_run(tmp_path: Path) -> None:
    """Another session of the batch uses up the quota between the reservation and the commit."""
    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)
    append(store, ANN, 10, durability="spill")
    store.close(float("inf"))
    quotas = QuotaTable(Quota(30 * TOKEN, None))
    store = SessionStore(1 << 20, disk=RetiredStore(SqliteStore(tmp_path, 0)), backend=BACKEND, quotas=quotas)

    reservation = store.reserve(ANN, opened(), {ANN}, nbytes=20 * TOKEN, pages=1)
    append(store, BOB, 20)
    with pytest.raises(QuotaExceeded):
        run_to_completion(store.commit(reservation, grown(opened(), 20)))
    store.close(float("inf"))

    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)
    assert store.find(ANN) is not None
    store.close(float("inf"))
