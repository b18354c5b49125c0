"""StagedSession: what an import counts, and that its end leaves either a session or nothing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hadakv_kernels import Encoded, Stream
from hadakv_service.device.jobs import run_to_completion
from hadakv_service.errors import InsufficientStorage, QuotaExceeded, SessionExists
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.storage.disk.interface import PageContent
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import SessionStore
from hadakv_service.storage.staging.staged_session import StagedSession, without_pages
from hadakv_service.tenants.quotas import Quota, QuotaTable
from support.inputs.sized_sessions import ANN, BACKEND, BOB, SPEC, TOKEN, commit, opened

PAGES = 6
NBYTES = PAGES * PAGE_TOKENS * TOKEN


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    """Return a store whose memory has space for some of the pages only."""
    quotas = QuotaTable(Quota(nbytes=NBYTES * 3 // 2))
    disk = SqliteStore(tmp_path, 1 << 30)
    store = SessionStore(NBYTES // 2 + 20_000, disk=disk, backend=BACKEND, quotas=quotas)
    yield store
    store.close(float("inf"))


def content(tokens: int = PAGE_TOKENS) -> PageContent:
    k: Encoded
    (k,) = BACKEND.encode([Stream(np.ones((1, 1, tokens, 64), np.float16), SPEC)])
    return PageContent(k, k)


def staged(store: SessionStore, pages: int = PAGES) -> StagedSession:
    """Open a session on the way, and fill it."""
    session = without_pages(opened(durability="spill"), [(1, 0, PAGES * PAGE_TOKENS, False)])
    found = store.stage(ANN, session)
    found.open(())
    for _ in range(pages):
        found.add(0, content(), ())
    return found


def test_pages_that_do_not_fit_in_memory_are_spilled(store: SessionStore) -> None:
    found = staged(store)

    assert store.memory.used <= store.memory.limit
    assert store.disk.used > 0
    assert store.find(ANN) is None
    found.abort()


def test_commit_makes_all_pages_visible(store: SessionStore) -> None:
    record = run_to_completion(staged(store).commit(()))

    assert record.session.nbytes == NBYTES
    assert [page.tokens for page in record.session.all_pages()] == [PAGE_TOKENS] * PAGES
    assert store.memory.reserved == 0
    assert store.get(ANN) is record


def test_abort_frees_everything(store: SessionStore) -> None:
    staged(store).abort()
    store.run_maintenance()

    assert (store.memory.used, store.disk.used, len(store)) == (0, 0, 0)
    run_to_completion(staged(store).commit(()))


def test_abort_before_open_and_after_commit_does_nothing(store: SessionStore) -> None:
    session = without_pages(opened(durability="spill"), [(1, 0, PAGES * PAGE_TOKENS, False)])
    store.stage(ANN, session).abort()
    found = staged(store)
    run_to_completion(found.commit(()))

    found.abort()

    assert store.get(ANN).session.nbytes == NBYTES


def test_id_taken_meanwhile_fails_the_commit(store: SessionStore) -> None:
    found = staged(store)
    commit(store, ANN, opened())

    with pytest.raises(SessionExists):
        run_to_completion(found.commit(()))
    found.abort()

    assert store.get(ANN).session.nbytes == 0
    assert store.memory.reserved == 0


def test_abort_during_a_commit_that_fails_frees_everything(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = staged(store)

    def fail(*_: object) -> None:
        found.abort()
        raise InsufficientStorage("The disk is full.")

    monkeypatch.setattr(store, "_replace", fail)
    with pytest.raises(InsufficientStorage):
        run_to_completion(found.commit(()))

    store.run_maintenance()
    assert (store.memory.used, store.disk.used, len(store)) == (0, 0, 0)


def test_quota_counts_the_whole_session_from_the_start(store: SessionStore) -> None:
    found = staged(store, pages=0)
    session = without_pages(opened(durability="spill"), [(1, 0, PAGES * PAGE_TOKENS, False)])

    with pytest.raises(QuotaExceeded):
        store.stage(BOB, session).open(())
    found.abort()

    store.stage(BOB, session).open(())


def test_session_that_can_never_fit_is_rejected_at_the_start(tmp_path: Path) -> None:
    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, 1 << 20), backend=BACKEND)
    session = without_pages(opened(durability="spill"), [(1, 0, 1 << 40, False)])

    with pytest.raises(InsufficientStorage):
        store.stage(ANN, session).open(())

    assert store.memory.used == 0
    store.close(float("inf"))
