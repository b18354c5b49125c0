"""A start with another disk budget than before: smaller, or none."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hadakv_service.testing import RunningService, running_service
from support.contract import Caller
from support.services.restarted_service import K, V, holds, service

NAMES = ("a", "b", "c")


@contextmanager
def started(directory: Path, budget: str, log: Path) -> Iterator[tuple[RunningService, Caller]]:
    """Start a service with a disk budget, and its log in a file."""
    flags = ("--data-dir", str(directory), "--disk-budget", budget)
    with (
        log.open("w") as file,
        running_service(*flags, log=file.fileno()) as running,
        Caller(running.url) as caller,
    ):
        yield running, caller


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a data directory with three sessions, of which the first is acknowledged."""
    directory = tmp_path / "data"
    with service(directory) as caller:
        caller.put("/sessions/a", {"durability": "ack"})
        for name in NAMES:
            caller.append(name, K, V)
    return directory


def test_smaller_budget_is_reported_at_start_and_when_it_deletes(directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"

    with started(directory, "100KiB", log) as (running, caller):
        assert "disk budget 100KiB (exceeded: " in running.startup_line
        at_start = log.read_text()
        kept = [caller.get(f"/sessions/{name}").status for name in NAMES]
        caller.put("/sessions/d", {"durability": "ack"})
        caller.append("d", K[:, :, :1], V[:, :, :1])
        left = [caller.get(f"/sessions/{name}").status for name in NAMES]

    assert "--disk-budget is 100KiB" in at_start
    assert (kept, left) == ([200, 200, 200], [200, 404, 404])
    assert "deleted 2 sessions to make space on disk, see --disk-budget: 'b', 'c'" in log.read_text()


def test_ids_used_without_a_disk_do_not_get_their_old_content_back(directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"

    with started(directory, "0", log) as (_, caller):
        assert caller.get("/sessions").body["sessions"] == []
        assert "3 sessions" in log.read_text()
        assert caller.append("a", K[:, :, :5], V[:, :, :5]).status == 201
        assert caller.delete("/sessions/b").status == 204
        assert [caller.delete(f"/sessions/{name}").status for name in "bx"] == [404, 404]

    with service(directory) as caller:
        assert [each["session"] for each in caller.get("/sessions").body["sessions"]] == ["c"]
        assert holds(caller, "c")


def test_file_of_a_running_service_is_left_alone_without_a_disk(directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with service(directory) as first:
        with started(directory, "0", log) as (_, caller):
            assert caller.append("a", K[:, :, :5], V[:, :, :5]).status == 201
            assert "in use by another process" in log.read_text()
        assert holds(first, "a")

    with service(directory) as caller:
        assert holds(caller, "a")


def test_services_of_tests_and_demos_leave_the_default_directory_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HADAKV_DATA_DIR", str(directory))
    with running_service() as running, Caller(running.url) as caller:
        assert caller.append("c", K[:, :, :5], V[:, :, :5]).status == 201

    with service(directory) as caller:
        assert holds(caller, "c")
