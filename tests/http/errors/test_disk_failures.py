"""Disk failures and corrupt files: the errors that users get, and that other sessions are not affected."""

import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hadakv_kernels import Codec, tables
from hadakv_service.storage.disk.interface import DataDirectoryError
from hadakv_service.storage.disk.sqlite_file import FILE, open_database
from hadakv_service.testing import running_service
from support.contract import Caller, stream
from support.inputs.arrays import pair
from support.services.restarted_service import K, V, holds, service

UNPRIVILEGED_UID = 65534


def rejection(directory: Path, budget: str | None = "1GiB") -> str:
    """Start the program on a directory and return its error. A budget of None is the default."""
    command = [sys.executable, "-m", "hadakv_service", "--port", "0", "--data-dir", str(directory)]
    known = {name: value for name, value in os.environ.items() if name != "HADAKV_DISK_BUDGET"}
    known |= {"HADAKV_DISK_BUDGET": budget} if budget else {}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=known)
    assert done.returncode == 1, done
    assert done.stderr.startswith("hadakv: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def change(directory: Path, statement: str) -> None:
    """Change the file of a stopped service."""
    connection = sqlite3.connect(directory / FILE)
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE pages SET content = zeroblob(length(content)) WHERE id = 1",
        "UPDATE pages SET content = substr(content, 1, 1000) WHERE id = 1",
        "UPDATE pages SET header = '[]' WHERE id = 1",
        "DELETE FROM pages WHERE id = 1",
        "UPDATE pages SET tokens = 'x' WHERE id = 1",
        "UPDATE pages SET nbytes = 'x' WHERE id = 1",
        "UPDATE pages SET nbytes = -7 WHERE id = 1",
        "UPDATE sessions SET header = '{}' WHERE name = 'a'",
        "DELETE FROM holds WHERE page = 1",
    ],
)
def test_corrupt_session_does_not_affect_others(tmp_path: Path, statement: str) -> None:
    with service(tmp_path) as caller:
        caller.append("a", K, V)
        caller.append("b", K, V)
    connection = sqlite3.connect(tmp_path / FILE)
    (first,) = connection.execute(
        "SELECT MIN(page) FROM holds JOIN sessions ON id = session WHERE name = 'a'"
    ).fetchone()
    connection.close()
    change(tmp_path, statement.replace("1", str(first)) if "= 1" in statement else statement)

    with service(tmp_path) as caller:
        problem = caller.get("/sessions/a/kv").problem(410, "session-corrupt")
        assert "Delete the session" in problem["detail"]
        assert holds(caller, "b")
        assert caller.append("c", K, V).status == 201
        assert caller.delete("/sessions/a").status == 204
        assert caller.append("a", K, V).status == 201
        assert holds(caller, "a")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("PRAGMA user_version = 99", "was written by another version: its format is 99, this version has 1"),
        (
            "UPDATE about SET value = 'other' WHERE name = 'tables'",
            "was written with other codec tables, by hadakv 0.",
        ),
        ("DELETE FROM about", "was written with other codec tables, by another version of hadakv. Use that version"),
        ("PRAGMA application_id = 1", "is not a hadakv file"),
    ],
)
def test_file_of_another_version_is_rejected_unchanged(tmp_path: Path, statement: str, reason: str) -> None:
    with service(tmp_path) as caller:
        caller.append("a", K, V)
    change(tmp_path, statement)
    before = (tmp_path / FILE).read_bytes()

    assert reason in rejection(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_incompletely_created_file_is_created_again(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert (tmp_path / FILE).stat().st_size

    with service(tmp_path) as caller:
        assert caller.append("a", K, V).status == 201


def test_file_that_is_not_a_database_is_rejected_unchanged(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"dear diary" * 1000)

    assert "is not a hadakv file" in rejection(tmp_path)
    assert (tmp_path / FILE).read_bytes() == b"dear diary" * 1000


@pytest.mark.parametrize("table", ["sqlite_schema", "sessions", "pages", "about"])
def test_fully_corrupt_file_is_rejected_unchanged(tmp_path: Path, table: str) -> None:
    with service(tmp_path) as caller:
        caller.append("a", K, V)
    connection = sqlite3.connect(tmp_path / FILE)
    roots = {"sqlite_schema": 1, **dict(connection.execute("SELECT name, rootpage FROM sqlite_schema"))}
    ((block,),) = connection.execute("PRAGMA page_size").fetchall()
    connection.close()
    content = bytearray((tmp_path / FILE).read_bytes())
    # The first bytes of the first block are the header of the file.
    first = (roots[table] - 1) * block + (100 if table == "sqlite_schema" else 0)
    content[first : first + 1000] = b"\xaa" * 1000
    (tmp_path / FILE).write_bytes(content)

    assert "malformed. Move it away" in rejection(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_two_services_cannot_share_a_directory(tmp_path: Path) -> None:
    with service(tmp_path) as caller:
        assert "in use by another process" in rejection(tmp_path)
        assert caller.append("a", K, V).status == 201


@pytest.mark.parametrize("name", [FILE, FILE + "-wal", FILE + "-journal"])
def test_symbolic_link_in_the_directory_is_not_followed(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    (directory / name).symlink_to(victim)

    assert "symbolic link" in rejection(directory)
    assert victim.read_bytes() == b"mine"


def test_directory_writable_by_others_is_rejected(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    assert "can be written by other users" in rejection(tmp_path)


def test_data_files_are_readable_by_the_owner_only(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "data"
    with service(directory) as caller:
        caller.append("a", K, V)
        modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
        assert directory.stat().st_mode & 0o777 == 0o700

    assert FILE in modes
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize("budget", ["1GiB", None])
def test_data_dir_that_is_not_a_directory_is_rejected(tmp_path: Path, place: str, budget: str | None) -> None:
    (tmp_path / "file").touch()

    rejected = rejection(tmp_path / place, budget)

    assert f"{tmp_path / place} is not a directory. Choose another --data-dir" in rejected


def test_directory_in_place_of_the_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()

    assert f"{FILE} is a directory, not a file. Move it away" in rejection(tmp_path)


@pytest.fixture
def owned() -> Iterator[Path]:
    """Run as a user without root's rights, in a directory of that user."""
    # Imported before the switch: that user may not be able to read Python's own files.
    tables.fingerprint()
    mine = os.geteuid()
    # Root's temporary directory may be closed to other users.
    with tempfile.TemporaryDirectory(dir="/tmp" if mine == 0 else None) as name:
        if mine == 0:
            os.chown(name, UNPRIVILEGED_UID, -1)
            os.seteuid(UNPRIVILEGED_UID)
        yield Path(name)
        os.seteuid(mine)
        os.chmod(name, 0o700)


def test_unwritable_directory_is_rejected(owned: Path) -> None:
    advice = "Let this user write there, choose another --data-dir, or keep nothing on disk with --disk-budget 0."
    reasons = []
    for _ in "without", "with":
        owned.chmod(0o500)
        with pytest.raises(DataDirectoryError) as rejected:
            open_database(owned)
        reasons.append(str(rejected.value))
        owned.chmod(0o700)
        open_database(owned).close()

    assert reasons[0] == f"{owned} cannot be written (Permission denied). {advice}"
    assert re.fullmatch(rf"{owned} cannot be written \(.+\)\. {advice}", reasons[1])
    open_database(owned).close()


def test_inaccessible_file_and_directory_are_named(owned: Path) -> None:
    owned.joinpath(FILE).touch(0o400)
    owned.joinpath("closed").mkdir(0o500)

    with pytest.raises(
        DataDirectoryError, match=rf"{owned}/{FILE} cannot be written \(Permission denied\)\. Let this user"
    ):
        open_database(owned)
    with pytest.raises(
        DataDirectoryError, match=rf"{owned}/closed/new cannot be created \(Permission denied\)\. Choose another"
    ):
        open_database(owned / "closed" / "new")


def test_nothing_is_acknowledged_after_directory_is_removed(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with service(directory, "--durability", "ack") as caller:
        assert caller.append("a", K, V).status == 201
        shutil.rmtree(directory)

        caller.append("b", K, V).problem(507, "insufficient-storage")
        caller.put("/sessions/c", {"durability": "memory"})
        assert caller.append("c", K, V).status == 200
        assert holds(caller, "a")


@pytest.fixture
def little_disk(monkeypatch: pytest.MonkeyPatch) -> int:
    """Limit the file size of child processes. Writes beyond it fail as on a full disk."""
    nbytes = 1 << 20
    popen = subprocess.Popen

    def limited(*args: object, **options: object) -> object:
        return popen(*args, preexec_fn=limit, **options)  # type: ignore[call-overload]  # arguments are passed on unchanged

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))

    monkeypatch.setattr(subprocess, "Popen", limited)
    return nbytes


def test_full_disk_keeps_stored_sessions_and_rejects_others(tmp_path: Path, little_disk: int) -> None:
    k, v = pair(2, 4, 256)
    codec = Codec()
    stored: list[str] = []

    with (
        running_service("--data-dir", str(tmp_path), "--disk-budget", "1GiB", "--memory-budget", "1MiB") as running,
        Caller(running.url) as caller,
    ):
        for i in range(40):
            response = caller.append(f"s{i}", k, v)
            if response.status == 507:
                response.problem(507, "insufficient-storage")
                break
            stored.append(f"s{i}")
        rejected = len(stored) < 40
        wanted = [stream(k, codec), stream(v, codec)]
        found = [[body["k"], body["v"]] for body in map(caller.read, stored)]
        again = caller.append("more", k, v).status
        freed = [caller.delete(f"/sessions/{name}").status for name in stored]

    assert little_disk
    assert rejected
    # The rejected write may have checkpointed the log into the file, which frees a little space.
    assert again in (201, 507)
    assert found == [wanted] * len(stored)
    assert set(freed) <= {204, 503}


def test_append_that_cannot_be_acknowledged_is_not_stored(tmp_path: Path, little_disk: int) -> None:
    k, v = pair(2, 4, 256)
    flags = ("--data-dir", str(tmp_path), "--disk-budget", "1GiB", "--durability", "ack")

    with running_service(*flags) as running, Caller(running.url) as caller:
        lengths = [0]
        for _ in range(20):
            response = caller.append("a", k, v, position=lengths[-1])
            if response.status == 507:
                break
            lengths.append(response.body["length"])
        length = caller.info("a")["length"]
        running.process.kill()

    assert little_disk
    assert response.status == 507
    assert length == lengths[-1] > 0
    with service(tmp_path) as caller:
        assert caller.info("a")["length"] == length
        assert caller.read("a", start=0, stop=256)["k"] == stream(k, Codec())
    assert os.listdir(tmp_path)
