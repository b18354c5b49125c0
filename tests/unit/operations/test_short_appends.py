"""AppendOperation.is_short: which appends need neither the device thread nor the disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hadakv_kernels.cpu import CpuBackend
from hadakv_service.operations.append import SHORT_NBYTES, AppendOperation, AppendRequest
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.sessions.session import Session
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.disk_writer import DiskWriter, WriteBatch
from hadakv_service.storage.session_store import SessionStore
from hadakv_service.wire import messages

BACKEND = CpuBackend(1)
KEY = ("", "a")
LAYERS = 2


class Stored:
    """A store whose session "a" has some tokens in two layers."""

    def __init__(self, disk: SqliteStore | None, tokens: int = 5, budget: int = 1 << 24, **fields: Any) -> None:
        self.now = 1000.0
        self.new = Session(**fields)
        self.store = SessionStore(budget, lambda: self.now, disk=disk, backend=BACKEND)
        if tokens:
            self.run(self.append(tokens))

    def append(self, tokens: int = 1, key: tuple[str, str] = KEY, **fields: Any) -> AppendOperation:
        x = np.ones((fields.pop("layers", LAYERS), 1, tokens, 64), np.float32)
        tensor = messages.Tensor("float32", list(x.shape), x.reshape(-1).view(np.uint8).data)
        request = AppendRequest.from_body(messages.AppendBody(tensor, tensor, **fields))
        return AppendOperation(key, request, self.store, BACKEND, self.new)

    def run(self, job: AppendOperation) -> None:
        job.complete(BACKEND.encode(job.prepare(frozenset([job.key]))))
        assert not self.store.group_commit()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path, 1 << 26)
    yield store
    store.close()


@pytest.mark.parametrize("durability", ["memory", "spill"])
@pytest.mark.parametrize("position", [None, 5])
def test_one_more_token_is_short(disk: SqliteStore, durability: str, position: int | None) -> None:
    stored = Stored(disk, durability=durability)

    assert stored.append(position=position).is_short


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"position": 4}, id="repetition"),
        pytest.param({"position": 9}, id="position conflict"),
        pytest.param({"layers": 1}, id="one of the layers"),
        pytest.param({"layer": 2, "layers": 1}, id="new layer"),
        pytest.param({"key": ("", "b")}, id="new session"),
        pytest.param({"tokens": SHORT_NBYTES // (LAYERS * 2 * 64 * 4) + 1}, id="large"),
    ],
)
def test_other_appends_are_not_short(disk: SqliteStore, fields: dict[str, Any]) -> None:
    assert not Stored(disk).append(**fields).is_short


@pytest.mark.parametrize(("tokens", "is_short"), [(PAGE_TOKENS - 2, True), (PAGE_TOKENS - 1, False)])
def test_append_that_merges_pages_is_not_short(disk: SqliteStore, tokens: int, is_short: bool) -> None:
    stored = Stored(disk, tokens - 1)
    stored.run(stored.append())

    assert stored.append().is_short == is_short


def test_append_to_an_ack_session_is_not_short(disk: SqliteStore) -> None:
    assert not Stored(disk, durability="ack").append().is_short


def test_append_that_must_evict_is_not_short(disk: SqliteStore) -> None:
    stored = Stored(disk)
    stored.store.memory.allocate(stored.store.memory.available)

    assert not stored.append().is_short


def test_append_is_not_short_if_sessions_expired(disk: SqliteStore) -> None:
    stored = Stored(disk, ttl_seconds=10.0)
    stored.now += 5
    assert stored.append().is_short
    stored.now += 6

    assert not stored.append().is_short


def test_append_after_truncation_of_written_tokens_is_not_short(disk: SqliteStore) -> None:
    stored = Stored(disk, durability="spill")
    record = stored.store.get(KEY)
    (record.manifest,) = DiskWriter(disk, stored.store.pool).write(WriteBatch([record.to_write(KEY)]))
    assert stored.append().is_short

    record.session = record.session.truncate(3, BACKEND)

    assert not stored.append().is_short


def test_append_on_a_gpu_is_short_only_if_the_cpu_encodes_it(
    disk: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Stored(disk)
    monkeypatch.setattr(BACKEND, "encodes_on_cpu", lambda rows: rows < 2 * LAYERS)

    assert not stored.append().is_short


def test_memory_only_store_has_short_appends() -> None:
    assert Stored(None).append().is_short
