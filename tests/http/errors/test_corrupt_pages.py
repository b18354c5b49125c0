"""Corrupt pages: every session that uses one is corrupt from then on, and the log names it."""

import sqlite3
from pathlib import Path

import msgspec
import pytest

from hadakv_service.errors import SessionCorrupt
from hadakv_service.storage.disk.sqlite_file import FILE
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import SessionStore
from hadakv_service.testing import running_service
from support.contract import Caller
from support.inputs.arrays import pair
from support.inputs.sized_sessions import ANN, BACKEND, append, fork
from support.services.restarted_service import K, V, holds, service

MORE = pair(2, 2, 3)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Data directory in which the last page of "a" is corrupt. Its fork "b" shares the page, "c" does not."""
    with service(tmp_path) as caller:
        caller.append("a", K, V)
        caller.append("c", K, V)
        caller.post("/sessions/a/fork", {"id": "b"})
    connection = sqlite3.connect(tmp_path / FILE)
    (row,) = connection.execute("SELECT MAX(page) FROM holds JOIN sessions ON id = session WHERE name = 'a'").fetchone()
    connection.execute("UPDATE pages SET content = zeroblob(length(content)) WHERE id = ?", (row,))
    connection.commit()
    connection.close()
    return tmp_path


def test_export_of_corrupt_session_is_rejected_before_it_starts(damaged: Path) -> None:
    with service(damaged) as caller:
        caller.get("/sessions/a/export").problem(410, "session-corrupt")
        assert caller.get("/sessions/c/export").status == 200


def test_corrupt_session_and_its_forks_reject_operations(damaged: Path) -> None:
    with service(damaged, "--durability", "ack") as caller:
        caller.get("/sessions/a/kv").problem(410, "session-corrupt")

        for id_ in ("a", "b"):
            caller.append(id_, *MORE).problem(410, "session-corrupt")
            caller.get(f"/sessions/{id_}").problem(410, "session-corrupt")
            caller.put(f"/sessions/{id_}", {}).problem(410, "session-corrupt")
            caller.post(f"/sessions/{id_}/truncate", {"length": 1}).problem(410, "session-corrupt")
            caller.post(f"/sessions/{id_}/fork", {"id": "d"}).problem(410, "session-corrupt")
            assert caller.delete(f"/sessions/{id_}").status == 204
            assert caller.append(id_, K, V).status == 201
            assert holds(caller, id_)
        assert holds(caller, "c")


def test_id_of_a_corrupt_session_is_taken(damaged: Path) -> None:
    with service(damaged) as caller:
        caller.get("/sessions/a/kv").problem(410, "session-corrupt")
        file = caller.get("/sessions/c/export").content

        caller.post("/sessions/c/fork", {"id": "a"}).problem(409, "session-exists")
        caller.send("POST", "/sessions/a/import", file, "application/octet-stream").problem(409, "session-exists")


def test_corruption_stays_known_after_eviction(damaged: Path) -> None:
    with service(damaged, "--memory-budget", "2MiB") as caller:
        caller.get("/sessions/a/kv").problem(410, "session-corrupt")
        for i in range(40):
            assert caller.append(f"other-{i}", K, V).status == 201

        caller.append("b", *MORE).problem(410, "session-corrupt")


def test_corruption_is_logged_once_with_sessions_and_request(damaged: Path, tmp_path: Path) -> None:
    flags = ("--data-dir", str(damaged), "--disk-budget", "1GiB", "--log-format", "json")
    with (tmp_path / "log").open("w+") as log:
        with running_service(*flags, log=log) as running, Caller(running.url) as caller:
            for _ in range(2):
                response = caller.http.get("/sessions/b/kv", headers={"x-request-id": "mine"})
                assert response.status_code == 410
        log.seek(0)
        lines = [msgspec.json.decode(line) for line in log]

    (line,) = [line for line in lines if line["level"] == "error"]
    assert "'a', 'b'" in line["message"]
    assert "'c'" not in line["message"]
    assert line["request_id"] == "mine"


def test_corruption_log_names_some_of_many_sessions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)
    append(store, ANN, 300, durability="spill")
    for i in range(30):
        fork(store, ANN, ("", f"fork-{i:02}"), store.get(ANN).session)
    store.close(float("inf"))
    store = SessionStore(1 << 20, disk=SqliteStore(tmp_path, 1 << 30), backend=BACKEND)
    (first, _) = store.get(ANN).session.all_pages()
    store.disk._sql.execute("UPDATE pages SET checksum = x'00' WHERE id = ?", (first.page_id,))

    with pytest.raises(SessionCorrupt):
        first.resident_copy()

    assert "'ann', 'fork-00'" in caplog.text
    assert "and 21 more" in caplog.text
    store.close(float("inf"))
