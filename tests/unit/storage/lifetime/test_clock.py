"""Ages of sessions when the system's clock is set: within a process, and between two."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.lifetime.clock import SteadyClock
from hadakv_service.storage.session_store import SessionStore
from support.inputs.sized_sessions import ANN, BACKEND, BOB, Clock, append, commit, opened

HOUR = 3600.0
YEAR = 365 * 24 * HOUR
Open = Callable[[], SessionStore]


@pytest.mark.parametrize("step", [-YEAR, -1.0, 0.0, YEAR])
def test_step_of_the_system_clock_changes_no_age(step: float) -> None:
    wall, elapsed = Clock(), Clock()
    elapsed.now = 7.0
    clock = SteadyClock(wall, elapsed)
    began = clock()

    wall.now += step
    elapsed.now += 5

    assert (began, clock()) == (wall.now - step, began + 5)


def test_default_clock_reads_the_system_time() -> None:
    before = time.time()
    now = SteadyClock()()

    # The two clocks are read one after the other.
    assert before - 1 < now < time.time() + 1


@pytest.fixture
def wall() -> Clock:
    return Clock()


@pytest.fixture
def open_store(tmp_path: Path, wall: Clock) -> Open:
    return lambda: SessionStore(1 << 20, wall, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)


def test_time_between_two_processes_counts(open_store: Open, wall: Clock) -> None:
    store = open_store()
    append(store, ANN, 3, HOUR, "spill")
    append(store, BOB, 3, 3 * HOUR, "spill")
    store.close(float("inf"))
    wall.now += 2 * HOUR

    store = open_store()

    assert [store.find(key) is not None for key in (ANN, BOB)] == [False, True]
    store.close(float("inf"))


@pytest.mark.parametrize("back", [1.0, HOUR, 20 * YEAR])
def test_clock_set_back_between_processes_keeps_ages(open_store: Open, wall: Clock, back: float) -> None:
    store = open_store()
    append(store, ANN, 3, HOUR, "spill")
    wall.now += 0.75 * HOUR
    append(store, BOB, 3, HOUR, "spill")
    store.close(float("inf"))
    wall.now -= back

    store = open_store()
    there = [store.find(key) is not None for key in (ANN, BOB)]
    wall.now += 0.25 * HOUR
    later = [store.find(key) is not None for key in (ANN, BOB)]
    wall.now += 0.75 * HOUR
    store.run_maintenance()

    assert (there, later, len(store)) == ([True, True], [False, True], 0)
    store.close(float("inf"))


def test_clock_set_back_before_a_crash_makes_no_session_immortal(open_store: Open, wall: Clock) -> None:
    store = open_store()
    commit(store, ANN, opened(HOUR, durability="ack"))
    assert not store.group_commit()
    store.disk.close()
    wall.now -= YEAR

    store = open_store()
    wall.now += HOUR
    store.run_maintenance()

    assert len(store) == 0
    store.close(float("inf"))


def test_idle_process_stores_how_old_its_sessions_are(open_store: Open, wall: Clock) -> None:
    store = open_store()
    commit(store, ANN, opened(HOUR, durability="ack"))
    assert not store.group_commit()
    wall.now += 0.75 * HOUR
    store.run_maintenance()
    store.disk.close()
    wall.now -= YEAR

    store = open_store()
    wall.now += 0.25 * HOUR

    assert store.find(ANN) is None
    store.close(float("inf"))


def test_two_starts_after_one_step_back_change_ages_once(open_store: Open, wall: Clock) -> None:
    store = open_store()
    append(store, ANN, 3, HOUR, "spill")
    store.close(float("inf"))
    wall.now -= YEAR
    for _ in range(3):
        open_store().disk.close()

    store = open_store()
    record = store.find(ANN)

    assert record is not None
    assert record.last_used == wall.now
    store.close(float("inf"))


@pytest.mark.parametrize("value", ["", "1e300 0000000000000000", "nan", None])
def test_corrupt_stored_time_is_ignored(tmp_path: Path, open_store: Open, value: str | None) -> None:
    store = open_store()
    append(store, ANN, 3, HOUR, "spill")
    store.close(float("inf"))
    disk = SqliteStore(tmp_path, 1 << 30)
    disk._sql.execute("REPLACE INTO about VALUES ('clock', ?)", (value or b"\xff",))
    disk.close()

    store = open_store()

    assert store.find(ANN) is not None
    store.close(float("inf"))
