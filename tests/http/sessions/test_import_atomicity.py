"""An import is all or nothing, whatever ends it, and nothing of it is left afterwards."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.files.run import GeneratedFile, measure
from hadakv_service.testing import running_service
from support.contract import Caller, status_line
from support.inputs.arrays import pair
from support.inputs.session_files import as_version_1, exported, imported, without_digest
from support.polling import eventually
from support.services.partial_import import disk_used, partial_import
from support.services.restarted_service import service

CODEC = {"kind": "float16"}
# More than the sessions whose pages stay in memory until the commit.
TOKENS, HEAD_DIM = 5000, 256
X = np.ones((2, 2, TOKENS, HEAD_DIM), np.float16)
EMPTY_NBYTES = 64 << 10


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with service(tmp_path_factory.mktemp("source")) as caller:
        caller.append("original", X, X, codec=CODEC)
        return exported(caller, "original")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """Service that only this module uses."""
    with service(tmp_path_factory.mktemp("target"), "--memory-budget", "64MiB") as caller:
        yield caller


@pytest.fixture(autouse=True)
def _nothing_is_left(target: Caller) -> Iterator[None]:
    """Check that the sessions and the bytes they use are the same after the block."""
    before = everything(target)
    yield
    eventually(lambda: everything(target) == before)


def everything(caller: Caller) -> tuple[int, list[str], bool]:
    return caller.used_nbytes(), names(caller), disk_used(caller) < EMPTY_NBYTES


def names(caller: Caller) -> list[str]:
    return [session["session"] for session in caller.get("/sessions").body["sessions"]]


def test_import_under_way_is_invisible_and_writes_to_disk(target: Caller, file: bytes) -> None:
    with partial_import(target, "new", file[: len(file) // 2], len(file)):
        eventually(lambda: disk_used(target) > len(file) // 4)

        target.get("/sessions/new").problem(404, "session-not-found")
        assert names(target) == []
        assert target.used_nbytes() < len(file) // 2


def test_lost_connection_leaves_nothing(target: Caller, file: bytes) -> None:
    with partial_import(target, "new", file[:-1], len(file)):
        eventually(lambda: disk_used(target) > len(file) // 2)


def test_wrong_digest_in_the_last_bytes_leaves_nothing(target: Caller, file: bytes) -> None:
    for damaged in (file[:-32] + bytes(32), file[:-1] + bytes([file[-1] ^ 1])):
        imported(target, "new", damaged).problem(422, "file-corrupt")


def test_session_created_meanwhile_is_kept(target: Caller, file: bytes) -> None:
    k, v = pair(1, 1, 3)
    with partial_import(target, "new", file[:-1], len(file)) as connection:
        eventually(lambda: disk_used(target) > len(file) // 2)
        assert target.append("new", k, v).status == 201
        connection.sendall(file[-1:])

        assert status_line(connection) == b"HTTP/1.1 409 Conflict"
    assert target.info("new")["length"] == 3
    target.delete("/sessions/new")


def test_one_of_two_imports_to_the_same_id_wins(target: Caller, file: bytes) -> None:
    with partial_import(target, "new", file[:-1], len(file)) as connection:
        assert imported(target, "new", file).status == 201
        connection.sendall(file[-1:])

        assert status_line(connection) == b"HTTP/1.1 409 Conflict"
    assert without_digest(exported(target, "new")) == without_digest(file)
    target.delete("/sessions/new")


def test_import_to_a_taken_id_is_rejected_before_its_end(target: Caller, file: bytes) -> None:
    target.put("/sessions/new", {})
    with partial_import(target, "new", file[: 1 << 16], len(file)) as connection:
        assert status_line(connection) == b"HTTP/1.1 409 Conflict"
    target.delete("/sessions/new")


def test_file_of_another_size_is_rejected_before_its_end(target: Caller, file: bytes) -> None:
    for nbytes in (len(file) - 1, len(file) + 1, 1 << 50):
        with partial_import(target, "new", file[: 1 << 16], nbytes) as connection:
            assert status_line(connection) == b"HTTP/1.1 400 Bad Request"


def test_claim_of_a_huge_header_is_rejected_at_once(target: Caller) -> None:
    with partial_import(target, "new", (1 << 40).to_bytes(8, "little"), 1 << 50) as connection:
        assert status_line(connection) == b"HTTP/1.1 400 Bad Request"


@pytest.mark.parametrize("durability", ["spill", "ack"])
def test_killed_service_has_nothing_of_the_import(tmp_path: Path, file: bytes, durability: str) -> None:
    flags = ("--durability", durability)
    with service(tmp_path, *flags, kill=True) as caller, partial_import(caller, "new", file[:-1], len(file)):
        eventually(lambda: disk_used(caller) > len(file) // 2)

    with service(tmp_path, *flags) as caller:
        assert names(caller) == []
        assert disk_used(caller) < EMPTY_NBYTES
        assert imported(caller, "new", file).status == 201


def test_acknowledged_import_survives_a_kill(tmp_path: Path, file: bytes) -> None:
    flags = ("--durability", "ack", "--memory-budget", "8MiB")
    with service(tmp_path, *flags, kill=True) as caller:
        assert imported(caller, "new", file).status == 201

    with service(tmp_path, *flags) as caller:
        assert without_digest(exported(caller, "new")) == without_digest(file)


def test_import_that_the_disk_cannot_hold_is_rejected_before_its_end(tmp_path: Path, file: bytes) -> None:
    with service(tmp_path, "--memory-budget", "8MiB", "--disk-budget", "8MiB") as caller:
        with partial_import(caller, "new", file[: 1 << 16], len(file)) as connection:
            assert status_line(connection) == b"HTTP/1.1 507 Insufficient Storage"
        assert names(caller) == []


def test_quota_counts_an_import_from_its_start(tmp_path: Path, file: bytes) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann:{hashlib.sha256(b'secret').hexdigest()}\n")
    tokens.chmod(0o600)
    flags = ("--token-file", str(tokens), "--tenant-quota", str(len(file) + 1000), "--memory-budget", "64MiB")
    with (
        running_service("--data-dir", str(tmp_path / "data"), *flags) as running,
        Caller(running.url, token="secret") as caller,
    ):
        # All but the content of the socket buffers is received when this begins.
        with partial_import(caller, "new", file[:-1], len(file), "secret"):
            with partial_import(caller, "second", file[: 1 << 16], len(file), "secret") as connection:
                assert status_line(connection) == b"HTTP/1.1 507 Insufficient Storage"
            assert caller.append("third", *pair(1, 1, 100)).problem(507, "quota-exceeded")

        # The lost connection ends the import.
        eventually(lambda: caller.append("third", *pair(1, 1, 100)).status == 201)
        caller.delete("/sessions/third")
        assert imported(caller, "new", file).status == 201


# Files of version 1


def spools(directory: Path) -> list[Path]:
    return list(directory.glob("import-*"))


def test_version_1_file_is_spooled_without_a_name(tmp_path: Path, file: bytes) -> None:
    old = as_version_1(file)
    (tmp_path / "import-0123.spool").write_bytes(b"left by a crash")
    with service(tmp_path, "--memory-budget", "8MiB") as caller:
        assert spools(tmp_path) == []
        with partial_import(caller, "new", old[:-1], len(old)):
            assert spools(tmp_path) == []

        answer = imported(caller, "new", old)

        assert answer.status == 201
        assert re.fullmatch(r'299 hadakv "file of version 1: .*"', answer.headers["warning"])
        assert without_digest(exported(caller, "new")) == without_digest(file)
        assert spools(tmp_path) == []


def test_version_1_files_share_the_space_of_the_disk(tmp_path: Path, file: bytes) -> None:
    old = as_version_1(file)
    with (
        service(tmp_path, "--disk-budget", str(len(old) * 3 // 2), "--memory-budget", "64MiB") as caller,
        partial_import(caller, "first", old[:-1], len(old)),
        partial_import(caller, "second", old[: 1 << 16], len(old)) as connection,
    ):
        assert status_line(connection) == b"HTTP/1.1 507 Insufficient Storage"


def test_import_and_export_need_memory_for_a_few_pages(tmp_path: Path) -> None:
    """The file is much larger than the memory that the transfers may take."""
    flags = ("--data-dir", str(tmp_path), "--disk-budget", "1GiB", "--memory-budget", "256MiB")
    with running_service(*flags) as running:
        transfers = measure(running, GeneratedFile(100 << 20))

    for transfer in transfers.values():
        assert transfer.nbytes > 90 << 20
        assert transfer.peak - transfer.before < 64 << 20, transfer
