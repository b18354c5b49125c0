"""MemoryBudget and Reservation: counters that only they change."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hadakv_service.device.jobs import run_to_completion
from hadakv_service.errors import InsufficientStorage, QuotaExceeded, SessionCorrupt
from hadakv_service.operations.append import AppendOperation, AppendRequest
from hadakv_service.operations.truncate_fork import TruncateOperation
from hadakv_service.sessions.session import Shape
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.memory_budget import MemoryBudget, Reservation
from hadakv_service.storage.session_store import SessionStore
from hadakv_service.tenants.quotas import Quota, QuotaTable
from support.inputs.sized_sessions import ANN, BACKEND, BOB, TOKEN, append, commit, cost, grown, opened

SERVICE = Path(__file__).parents[3] / "service" / "hadakv_service"
STEPS = st.lists(st.tuples(st.sampled_from(["reserve", "release", "allocate", "free"]), st.integers(0, 1000)))


@given(STEPS)
def test_counters_are_sums_of_what_is_open(steps: list[tuple[str, int]]) -> None:
    memory = MemoryBudget(10_000)
    reservations: list[Reservation] = []
    stored = 0

    for step, number in steps:
        if step == "reserve":
            reservations.append(memory.reserve(ANN, number))
        elif step == "release" and reservations:
            reservations[number % len(reservations)].release()
        elif step == "allocate":
            memory.allocate(number)
            stored += number
        elif step == "free":
            memory.free(min(number, stored))
            stored -= min(number, stored)

        assert memory.stored == stored
        assert memory.reserved == sum(reservation.nbytes for reservation in reservations)
        assert memory.used == memory.stored + memory.reserved
        assert memory.available == memory.limit - memory.used


def test_release_twice_gives_bytes_back_once() -> None:
    memory = MemoryBudget(1000)
    other = memory.reserve(BOB, 100)
    reservation = memory.reserve(ANN, 300)

    reservation.release()
    reservation.release()

    assert (memory.reserved, other.nbytes, reservation.nbytes) == (100, 100, 0)


def test_free_of_more_than_stored_is_an_error() -> None:
    memory = MemoryBudget(1000)
    memory.allocate(10)

    with pytest.raises(AssertionError):
        memory.free(11)


def test_counters_cannot_be_assigned() -> None:
    memory = MemoryBudget(1000)

    for name in ("stored", "reserved"):
        with pytest.raises(AttributeError):
            setattr(memory, name, 1)


def test_commit_consumes_the_reservation() -> None:
    store = SessionStore(100_000)
    reservation = store.reserve(ANN, opened(), {ANN}, nbytes=20 * TOKEN, pages=1)

    run_to_completion(store.commit(reservation, grown(opened(), 20)))
    reservation.release()

    assert (store.memory.stored, store.memory.reserved) == (cost(20), 0)


def test_failed_commit_keeps_the_reservation_until_release() -> None:
    quotas = QuotaTable()
    store = SessionStore(100_000, quotas=quotas)
    reservation = store.reserve(ANN, opened(), {ANN}, nbytes=20 * TOKEN, pages=1)
    quotas.default = Quota(sessions=0)
    reserved = store.memory.reserved

    with pytest.raises(QuotaExceeded):
        run_to_completion(store.commit(reservation, grown(opened(), 20)))

    assert (store.memory.stored, store.memory.reserved) == (0, reserved)
    reservation.release()
    assert store.memory.reserved == 0


def test_rolled_back_operation_releases_its_reservation(tmp_path: Path) -> None:
    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)
    append(store, ANN, 10, durability="ack")
    assert not store.group_commit()
    k = np.ones((1, 1, 5, 64), np.float16)
    job = AppendOperation(ANN, AppendRequest(k, k, Shape(0, 1, 1, 5, 64), None), store, BACKEND, opened())
    encoded = BACKEND.encode(job.prepare(frozenset([ANN])))
    assert store.memory.reserved > 0
    record = store.get(ANN)
    record.is_corrupt = True

    with pytest.raises(SessionCorrupt):
        job.complete(encoded)
    job.roll_back()
    job.roll_back()

    assert store.memory.reserved == 0
    assert record.session.nbytes == 10 * TOKEN
    store.close(float("inf"))


def test_failed_fork_releases_its_reservation() -> None:
    quotas = QuotaTable()
    store = SessionStore(100_000, quotas=quotas)
    append(store, ANN, 10)
    quotas.default = Quota(sessions=1)

    with pytest.raises(QuotaExceeded):
        run_to_completion(store.fork(ANN, BOB, store.get(ANN).session))

    assert (store.memory.used, store.find(BOB)) == (cost(10), None)


def test_rejected_reservation_counts_nothing() -> None:
    store = SessionStore(cost(10))

    with pytest.raises(InsufficientStorage):
        store.reserve(ANN, opened().split_runs(0, 1), {ANN}, nbytes=11 * TOKEN, pages=1)

    assert store.memory.used == 0


def test_truncate_needs_no_reservation_in_full_memory() -> None:
    store = SessionStore(cost(300, 2))
    commit(store, ANN, grown(grown(opened(), 256), 44))
    job = TruncateOperation(ANN, 256, store, BACKEND)

    job.prepare(frozenset([ANN]))
    job.complete(())

    assert (store.memory.stored, store.memory.reserved) == (cost(256), 0)


@pytest.mark.parametrize(
    ("call", "owners"),
    [
        (".transaction(", {"storage/disk_writer.py", "storage/disk/sqlite_store.py"}),
        (".set_resident(", {"storage/buffer_pool.py"}),
        (".clear_resident(", {"storage/buffer_pool.py"}),
        ("_space.ensure(", {"storage/write_back.py", "storage/checkpoints/checkpointer.py"}),
        ("._writer.delete(", {"storage/session_table.py"}),
        (".ref_count +=", {"storage/buffer_pool.py"}),
        ("memory.allocate(", {"storage/buffer_pool.py", "storage/session_table.py"}),
    ],
)
def test_each_action_has_one_owner(call: str, owners: set[str]) -> None:
    callers = {str(path.relative_to(SERVICE)) for path in SERVICE.rglob("*.py") if call in path.read_text()}

    assert callers == owners
