"""Layers that came together and now come by themselves: their pages are split, wherever these lie."""

import gc
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import Codec
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.errors import InsufficientStorage, SessionCorrupt
from hadakv_service.operations.append import AppendOperation, AppendRequest
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Durability, Session
from hadakv_service.storage.disk.interface import Manifest
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.disk_writer import WriteBatch
from hadakv_service.storage.session_store import SessionStore
from hadakv_service.storage.write_back import WRITE_CHUNK_NBYTES
from hadakv_service.wire import messages
from support.sized_sessions import commit
from unit.storage.test_page_sharing import numbered, numbers_of

BACKEND = CpuBackend(1)
KEY, OTHER = ("", "a"), ("", "b")
LAYERS, TOKENS = 8, 40 * 256
# Of float16, K and V, one head of 64.
TOKEN = 2 * 128 * LAYERS
NBYTES = TOKENS * TOKEN
BUDGET = 4 << 20


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "data", 1 << 30)
    yield made
    made.close()


def session(durability: Durability = "spill") -> Session:
    codec = Codec(kind="float16")
    return Session((codec, codec), kv_heads=1, head_dim=64, durability=durability)


def stored(store: SessionStore, tokens: int = TOKENS, durability: Durability = "spill") -> None:
    """A session of numbers, all layers at once."""
    new = session(durability)
    for start in range(0, tokens, 256):
        page = numbered([i % 2048 for i in range(start, min(start + 256, tokens))], LAYERS)
        new = new.append(0, page, BACKEND)
        commit(store, KEY, new)
    store.group_commit()


def layer_job(store: SessionStore, layer: int, number: float) -> AppendOperation:
    x = np.full((1, 1, 1, 64), number, np.float16)
    k, v = (messages.Tensor("float16", list(t.shape), t.reshape(-1).view(np.uint8).data) for t in (x, -x))
    return AppendOperation(KEY, AppendRequest.from_body(messages.AppendBody(k, v, layer)), store, BACKEND, session())


def steps(job: AppendOperation) -> Iterator[None]:
    """The job as the device does a long one."""
    encoded = BACKEND.encode(job.prepare(frozenset([KEY])))
    yield
    yield from job.complete_chunked(encoded)


def held(store: SessionStore, layer: int) -> NDArray[np.float16]:
    """The numbers of a layer's tokens, read a few pages at a time."""
    value = store.get(KEY).session
    _, _, stop = value.common_range(layer, 1)
    parts = [
        numbers_of(value.read(layer, layer + 1, at, min(at + 1000, stop), BACKEND))[0] for at in range(0, stop, 1000)
    ]
    return np.concatenate(parts)


def reads(tier: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that are read from now on."""
    rows: list[int] = []
    content = tier.read_page
    monkeypatch.setattr(tier, "read_page", lambda row: (rows.append(row), content(row))[1])
    return rows


@pytest.mark.parametrize("durability", ["spill", "ack"])
def test_a_session_larger_than_memory_is_split_within_the_budget_reading_each_page_once(
    tier: SqliteStore, durability: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SessionStore(BUDGET, disk=tier, backend=BACKEND)
    stored(store, durability=durability)
    away = [page for page in store.get(KEY).session.all_pages() if not page.is_resident]
    rows = reads(tier, monkeypatch)

    tracemalloc.start()
    pauses = 0
    for _ in steps(layer_job(store, 3, 7.0)):
        pauses += 1
        assert store.memory.used <= BUDGET
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert not store.group_commit()
    assert len(away) * 256 * TOKEN > NBYTES - BUDGET, "most of it is on disk"
    assert sorted(rows) == sorted(page.page_id for page in away)
    assert pauses > NBYTES // WRITE_CHUNK_NBYTES / 2, "others have their turn"
    assert peak < 2 * WRITE_CHUNK_NBYTES, "nor does it pass through memory at once"
    for layer in range(LAYERS):
        more = [7.0] if layer == 3 else []
        np.testing.assert_array_equal(held(store, layer), [*(i % 2048 for i in range(TOKENS)), *more])


def test_further_layers_find_theirs_split_already(tier: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SessionStore(BUDGET, disk=tier, backend=BACKEND)
    stored(store)
    for _ in steps(layer_job(store, 0, 7.0)):
        pass
    written = tier.used
    rows = reads(tier, monkeypatch)

    for layer in range(1, LAYERS):
        for _ in steps(layer_job(store, layer, 7.0)):
            pass

    assert rows == []
    # As much again was on disk until nobody needed the pages of all layers any longer.
    store.run_maintenance()
    assert tier.used < written
    assert tier.used < 1.2 * NBYTES


@pytest.mark.parametrize("budget", [3 * NBYTES, NBYTES + NBYTES // 8])
def test_what_is_in_memory_is_split_within_the_budget_and_shares_nothing(tier: SqliteStore, budget: int) -> None:
    """With room for a second copy in memory, and without."""
    store = SessionStore(budget, disk=tier, backend=BACKEND)
    tracemalloc.start()
    empty, _ = tracemalloc.get_traced_memory()
    stored(store)
    assert all(page.is_resident for page in store.get(KEY).session.all_pages())

    for _ in steps(layer_job(store, 5, 7.0)):
        assert tracemalloc.get_traced_memory()[0] - empty < budget + WRITE_CHUNK_NBYTES

    assert store.memory.stored <= budget
    assert store.memory.reserved == 0
    held_nbytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert abs(held_nbytes - empty - store.memory.stored) < 0.05 * NBYTES + (1 << 20)
    np.testing.assert_array_equal(held(store, 5), [*(i % 2048 for i in range(TOKENS)), 7.0])


def test_layers_that_are_gone_keep_no_memory() -> None:
    """Of a window's old page, say, that only one layer still has."""
    store = SessionStore(1 << 30, backend=BACKEND)
    tracemalloc.start()
    empty, _ = tracemalloc.get_traced_memory()
    commit(store, KEY, replace(session("memory"), window=1).append(0, numbered(list(range(256)), LAYERS), BACKEND))
    for layer in range(LAYERS - 1):
        for _ in steps(layer_job(store, layer, 7.0)):
            pass

    gone = empty + 256 * TOKEN
    held_nbytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [run.layers for run in store.get(KEY).session.runs] == [1] * LAYERS
    assert [len(run.pages) for run in store.get(KEY).session.runs] == [1] * LAYERS
    assert held_nbytes - empty < 1.2 * store.memory.stored
    assert held_nbytes < gone


def test_without_a_disk_there_must_be_room_for_a_second_copy() -> None:
    store = SessionStore(NBYTES + NBYTES // 2, backend=BACKEND)
    stored(store, durability="memory")

    with pytest.raises(InsufficientStorage):
        layer_job(store, 3, 7.0).prepare(frozenset([KEY]))

    assert store.memory.reserved == 0


def test_a_disk_that_has_no_room_for_it_leaves_all_as_it_was(tmp_path: Path) -> None:
    tier = SqliteStore(tmp_path / "little", NBYTES + (1 << 20))
    store = SessionStore(BUDGET, disk=tier, backend=BACKEND)
    stored(store)
    job = layer_job(store, 3, 7.0)
    used = tier.used

    with pytest.raises(InsufficientStorage):
        for _ in steps(job):
            pass
    job.roll_back()

    store.group_commit()
    assert tier.used <= used + NBYTES // LAYERS
    assert store.memory.reserved == 0
    for layer in range(LAYERS):
        np.testing.assert_array_equal(held(store, layer), [i % 2048 for i in range(TOKENS)])
    tier.close()


def test_what_a_session_was_makes_room_on_disk_for_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is not room for both; and if it ends after all, what it was must not come back."""
    tier = SqliteStore(tmp_path / "data", NBYTES + NBYTES // 2)
    store = SessionStore(2 * NBYTES + NBYTES // 2, disk=tier, backend=BACKEND)
    stored(store)
    assert store._write_back.checkpoint(float("inf")) == 0
    for _ in steps(layer_job(store, 3, 7.0)):
        pass
    removals: list[bool] = []
    write = store._writer.write

    def recording_write(batch: WriteBatch) -> list[Manifest]:
        removals.extend([batch.sync] if batch.removed else [])
        return write(batch)

    monkeypatch.setattr(store._writer, "write", recording_write)
    used_by_others = session("memory").append(0, numbered([0] * (NBYTES * 9 // 4 // TOKEN), LAYERS), BACKEND)
    commit(store, OTHER, used_by_others)
    assert not store.group_commit()

    assert store.evictions == 0
    assert removals == [True]
    for layer in range(LAYERS):
        more = [7.0] if layer == 3 else []
        np.testing.assert_array_equal(held(store, layer), [*(i % 2048 for i in range(TOKENS)), *more])
    tier.close()


def test_a_damaged_page_is_told_and_nothing_is_stored(tier: SqliteStore) -> None:
    store = SessionStore(BUDGET, disk=tier, backend=BACKEND)
    stored(store)
    *_, last = (page for page in store.get(KEY).session.all_pages() if not page.is_resident)
    tier._sql.execute("UPDATE pages SET checksum = x'00' WHERE id = ?", (last.page_id,))
    used = tier.used
    job = layer_job(store, 3, 7.0)

    with pytest.raises(SessionCorrupt):
        for _ in steps(job):
            pass
    job.roll_back()

    assert tier.used > used, "some parts were written before"
    # As long as anybody has them, an error's traceback say, they stay.
    del job
    gc.collect()
    store.run_maintenance()
    assert tier.used == used
    assert store._table.get(KEY).session.common_range(3, 1) == (0, TOKENS, TOKENS)
    with pytest.raises(SessionCorrupt):
        store.get(KEY)
    assert not store.group_commit()


def test_parts_of_parts_are_parts_of_the_whole(tier: SqliteStore) -> None:
    store = SessionStore(BUDGET, disk=tier, backend=BACKEND)
    stored(store)
    page: Page = next(page for page in store.get(KEY).session.all_pages() if not page.is_resident)

    first, rest = page.split([0, 2, LAYERS])
    _, last = rest.split([0, 3, rest.layers])

    assert (first.layers, rest.layers, last.layers) == (2, 6, 3)
    assert last.parent == (page, slice(5, 8))
    assert last.nbytes == 3 * page.nbytes // LAYERS
    for stream, whole in zip(last.load(), page.load(), strict=True):
        np.testing.assert_array_equal(stream.packed, whole.packed[5:])


def test_layers_are_split_as_they_come() -> None:
    whole = session().append(0, numbered([1, 2], LAYERS), BACKEND)

    opened = whole.split_runs(5, 2)

    assert [run.layers for run in opened.runs] == [1, 2, 2, 2, 1]
    assert opened.split_runs(3, 2) is opened
    assert whole.split_runs_nbytes(5, 2) == whole.nbytes
    assert opened.split_runs_nbytes(3, 2) == whole.split_runs_nbytes(0, LAYERS) == 0
