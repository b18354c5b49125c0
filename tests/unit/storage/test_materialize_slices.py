"""Layers that were appended together and are now appended separately: their pages are split, in memory or on disk."""

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
from support.inputs.sized_sessions import commit
from unit.storage.test_page_sharing import numbered, numbers_of

BACKEND = CpuBackend(1)
KEY, OTHER = ("", "a"), ("", "b")
LAYERS, TOKENS = 8, 40 * 256
# K and V in float16, one head of 64.
TOKEN = 2 * 128 * LAYERS
NBYTES = TOKENS * TOKEN
BUDGET = 4 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "data", 1 << 30)
    yield made
    made.close()


def session(durability: Durability = "spill") -> Session:
    codec = Codec(kind="float16")
    return Session((codec, codec), kv_heads=1, head_dim=64, durability=durability)


def stored(store: SessionStore, tokens: int = TOKENS, durability: Durability = "spill") -> None:
    """Store a session of numbers, all layers appended together."""
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
    """Run the job as the device runs a chunked one."""
    encoded = BACKEND.encode(job.prepare(frozenset([KEY])))
    yield
    yield from job.complete_chunked(encoded)


def numbers_in(store: SessionStore, layer: int) -> NDArray[np.float16]:
    """Return the numbers of the tokens of a layer, read a few pages at a time."""
    value = store.get(KEY).session
    _, _, stop = value.common_range(layer, 1)
    parts = [
        numbers_of(value.read(layer, layer + 1, at, min(at + 1000, stop), BACKEND))[0] for at in range(0, stop, 1000)
    ]
    return np.concatenate(parts)


def reads(disk: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the ids of pages that are read from now on."""
    page_ids: list[int] = []
    content = disk.read_page
    monkeypatch.setattr(disk, "read_page", lambda page_id: (page_ids.append(page_id), content(page_id))[1])
    return page_ids


@pytest.mark.parametrize("durability", ["spill", "ack"])
def test_split_larger_than_memory_reads_each_page_once(
    disk: SqliteStore, durability: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SessionStore(BUDGET, disk=disk, backend=BACKEND)
    stored(store, durability=durability)
    evicted = [page for page in store.get(KEY).session.all_pages() if not page.is_resident]
    page_ids = reads(disk, monkeypatch)

    tracemalloc.start()
    pauses = 0
    for _ in steps(layer_job(store, 3, 7.0)):
        pauses += 1
        assert store.memory.used <= BUDGET
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert not store.group_commit()
    assert len(evicted) * 256 * TOKEN > NBYTES - BUDGET, "most of it is on disk"
    assert sorted(page_ids) == sorted(page.page_id for page in evicted)
    assert pauses > NBYTES // WRITE_CHUNK_NBYTES / 2, "other jobs can run in between"
    assert peak < 2 * WRITE_CHUNK_NBYTES, "only a few chunks are in memory at a time"
    for layer in range(LAYERS):
        more = [7.0] if layer == 3 else []
        np.testing.assert_array_equal(numbers_in(store, layer), [*(i % 2048 for i in range(TOKENS)), *more])


def test_further_layers_need_no_second_split(disk: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SessionStore(BUDGET, disk=disk, backend=BACKEND)
    stored(store)
    for _ in steps(layer_job(store, 0, 7.0)):
        pass
    written = disk.used
    page_ids = reads(disk, monkeypatch)

    for layer in range(1, LAYERS):
        for _ in steps(layer_job(store, layer, 7.0)):
            pass

    assert page_ids == []
    # The old pages of all layers stayed on disk until they were unreferenced.
    store.run_maintenance()
    assert disk.used < written
    assert disk.used < 1.2 * NBYTES


@pytest.mark.parametrize("budget", [3 * NBYTES, NBYTES + NBYTES // 8])
def test_split_in_memory_stays_within_budget(disk: SqliteStore, budget: int) -> None:
    """Memory has space for a second copy in one case, and not in the other."""
    store = SessionStore(budget, disk=disk, backend=BACKEND)
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
    np.testing.assert_array_equal(numbers_in(store, 5), [*(i % 2048 for i in range(TOKENS)), 7.0])


def test_dropped_layers_keep_no_memory() -> None:
    """An old page whose other layers have moved their windows past it."""
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


def test_split_without_disk_needs_memory_for_a_copy() -> None:
    store = SessionStore(NBYTES + NBYTES // 2, backend=BACKEND)
    stored(store, durability="memory")

    with pytest.raises(InsufficientStorage):
        layer_job(store, 3, 7.0).prepare(frozenset([KEY]))

    assert store.memory.reserved == 0


def test_split_on_full_disk_changes_nothing(tmp_path: Path) -> None:
    disk = SqliteStore(tmp_path / "little", NBYTES + (1 << 20))
    store = SessionStore(BUDGET, disk=disk, backend=BACKEND)
    stored(store)
    job = layer_job(store, 3, 7.0)
    used = disk.used

    with pytest.raises(InsufficientStorage):
        for _ in steps(job):
            pass
    job.roll_back()

    store.group_commit()
    assert disk.used <= used + NBYTES // LAYERS
    assert store.memory.reserved == 0
    for layer in range(LAYERS):
        np.testing.assert_array_equal(numbers_in(store, layer), [i % 2048 for i in range(TOKENS)])
    disk.close()


def test_old_copy_on_disk_is_deleted_for_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has no space for both. The deletion is synced, so that the old copy does not reappear after a crash."""
    disk = SqliteStore(tmp_path / "data", NBYTES + NBYTES // 2)
    store = SessionStore(2 * NBYTES + NBYTES // 2, disk=disk, backend=BACKEND)
    stored(store)
    assert store._write_back.checkpoint(float("inf")) == 0
    for _ in steps(layer_job(store, 3, 7.0)):
        pass
    syncs_of_removals: list[bool] = []
    write = store._writer.write

    def recording_write(batch: WriteBatch) -> list[Manifest]:
        syncs_of_removals.extend([batch.sync] if batch.removed else [])
        return write(batch)

    monkeypatch.setattr(store._writer, "write", recording_write)
    used_by_others = session("memory").append(0, numbered([0] * (NBYTES * 9 // 4 // TOKEN), LAYERS), BACKEND)
    commit(store, OTHER, used_by_others)
    assert not store.group_commit()

    assert store.evictions == 0
    assert syncs_of_removals == [True]
    for layer in range(LAYERS):
        more = [7.0] if layer == 3 else []
        np.testing.assert_array_equal(numbers_in(store, layer), [*(i % 2048 for i in range(TOKENS)), *more])
    disk.close()


def test_split_of_corrupt_page_stores_nothing(disk: SqliteStore) -> None:
    store = SessionStore(BUDGET, disk=disk, backend=BACKEND)
    stored(store)
    *_, last = (page for page in store.get(KEY).session.all_pages() if not page.is_resident)
    disk._sql.execute("UPDATE pages SET checksum = x'00' WHERE id = ?", (last.page_id,))
    used = disk.used
    job = layer_job(store, 3, 7.0)

    with pytest.raises(SessionCorrupt):
        for _ in steps(job):
            pass
    job.roll_back()

    assert disk.used > used, "some slices were written before the error"
    # They stay while anything references them, for example the traceback of the error.
    del job
    gc.collect()
    store.run_maintenance()
    assert disk.used == used
    assert store._table.get(KEY).session.common_range(3, 1) == (0, TOKENS, TOKENS)
    with pytest.raises(SessionCorrupt):
        store.get(KEY)
    assert not store.group_commit()


def test_slice_of_slice_is_slice_of_the_page(disk: SqliteStore) -> None:
    store = SessionStore(BUDGET, disk=disk, backend=BACKEND)
    stored(store)
    page: Page = next(page for page in store.get(KEY).session.all_pages() if not page.is_resident)

    first, rest = page.split([0, 2, LAYERS])
    _, last = rest.split([0, 3, rest.layers])

    assert (first.layers, rest.layers, last.layers) == (2, 6, 3)
    assert last.parent == (page, slice(5, 8))
    assert last.nbytes == 3 * page.nbytes // LAYERS
    for stream, whole in zip(last.load(), page.load(), strict=True):
        np.testing.assert_array_equal(stream.packed, whole.packed[5:])


def test_split_runs_follows_the_appended_layers() -> None:
    whole = session().append(0, numbered([1, 2], LAYERS), BACKEND)

    opened = whole.split_runs(5, 2)

    assert [run.layers for run in opened.runs] == [1, 2, 2, 2, 1]
    assert opened.split_runs(3, 2) is opened
    assert whole.split_runs_nbytes(5, 2) == whole.nbytes
    assert opened.split_runs_nbytes(3, 2) == whole.split_runs_nbytes(0, LAYERS) == 0
