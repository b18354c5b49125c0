"""Backup and upgrade, as docs/running.md describes them: each way restores every session, byte for byte."""

import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hadakv_client import Client
from hadakv_kernels import Codec
from hadakv_service.testing import RunningService, running_service
from support.contract import Caller, Json, stream
from support.inputs.stored import FILE, FILES, FORK, SESSIONS, pair_of, store, unpack

DISK = ("--disk-budget", "1GiB")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir(mode=0o700)
    return tmp_path / "data"


@pytest.fixture
def running(directory: Path) -> Iterator[RunningService]:
    """Start a service with the sessions of `support.inputs.stored` in its data directory."""
    with running_service("--data-dir", str(directory), *DISK) as service:
        with Caller(service.url) as caller:
            store(caller)
        yield service


def content(caller: Caller) -> dict[str, Json]:
    """Return every session as it is read, packed."""
    listed = caller.get("/sessions").body["sessions"]
    return {info["session"]: caller.read(info["session"]) for info in listed}


def restored(directory: Path) -> dict[str, Json]:
    """Return every session of a service that starts with a data directory."""
    with running_service("--data-dir", str(directory), *DISK) as service, Caller(service.url) as caller:
        assert caller.get("/readyz").status == 200
        return content(caller)


def codecs_of(name: str) -> tuple[Codec, Codec]:
    given = SESSIONS[name][0].get("codec", {})
    k, v = (Codec.from_mapping(given.get(part, {} if "k" in given else given)) for part in "kv")
    return k, v


def assert_complete(found: dict[str, Json]) -> None:
    """Assert that the sessions have the bytes that the reference codec gives for what was appended."""
    assert set(found) == {*SESSIONS, FORK[0]}
    for name, (fields, numbers) in SESSIONS.items():
        first = max(0, numbers[3] - fields.get("window", numbers[3]))
        for part, x, codec in zip("kv", pair_of(*numbers), codecs_of(name), strict=True):
            assert found[name][part] == stream(x[:, :, first:], codec), (name, part)
    for part, x, codec in zip("kv", pair_of(*SESSIONS[FORK[1]][1]), codecs_of(FORK[1]), strict=True):
        assert found[FORK[0]][part] == stream(x[:, :, : FORK[2]], codec)


def test_copy_of_a_stopped_service_has_every_session(directory: Path, tmp_path: Path) -> None:
    with running_service("--data-dir", str(directory), *DISK) as service, Caller(service.url) as caller:
        store(caller)
    shutil.copytree(directory, tmp_path / "backup")
    shutil.rmtree(directory)

    shutil.copytree(tmp_path / "backup", directory)

    assert_complete(restored(directory))


def test_exports_of_a_running_service_restore_every_session(running: RunningService, tmp_path: Path) -> None:
    with Client(running.url) as client:
        names = [info.session for info in client.sessions()]
        for name in names:
            client.session(name).export(tmp_path / f"{name}.safetensors")

    with running_service() as other, Client(other.url) as client:
        for name in names:
            client.import_session(tmp_path / f"{name}.safetensors", name)
        with Caller(other.url) as caller:
            assert_complete(content(caller))


def test_snapshot_of_a_running_service_has_what_was_acknowledged(
    running: RunningService, directory: Path, tmp_path: Path
) -> None:
    # A stopped process stands for a snapshot of the file system: all files at one moment.
    running.process.send_signal(signal.SIGSTOP)
    try:
        shutil.copytree(directory, tmp_path / "snapshot")
    finally:
        running.process.send_signal(signal.SIGCONT)

    found = restored(tmp_path / "snapshot")

    for part, x, codec in zip("kv", pair_of(*SESSIONS["acknowledged"][1]), codecs_of("acknowledged"), strict=True):
        assert found["acknowledged"][part] == stream(x, codec)


@pytest.mark.parametrize("statement", ["VACUUM INTO '{copy}'", "SELECT COUNT(*) FROM pages"])
def test_sqlite_cannot_back_up_a_running_service(
    running: RunningService, directory: Path, tmp_path: Path, statement: str
) -> None:
    with Caller(running.url) as caller:
        before = content(caller)

        with (
            closing(sqlite3.connect(f"file:{directory / FILE}?mode=ro", uri=True, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute(statement.format(copy=tmp_path / "copy"))

        assert content(caller) == before


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_data_directory_of_an_earlier_version_is_used(file: Path, directory: Path) -> None:
    unpack(file, directory)

    first = restored(directory)
    second = restored(directory)

    assert_complete(first)
    assert second == first


def test_there_are_data_directories_of_earlier_versions() -> None:
    assert FILES


def test_file_of_a_later_version_is_refused_and_left_alone(directory: Path) -> None:
    unpack(FILES[0], directory)
    with closing(sqlite3.connect(directory / FILE)) as database:
        database.execute("PRAGMA user_version = 1000")
    before = (directory / FILE).read_bytes()

    with pytest.raises(RuntimeError), running_service("--data-dir", str(directory), *DISK):
        pass

    assert (directory / FILE).read_bytes() == before
