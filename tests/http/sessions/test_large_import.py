"""Imports of sessions that are larger than the memory budget."""

from pathlib import Path

import pytest

from hadakv_kernels import Codec
from support.inputs.arrays import pair
from support.inputs.session_files import as_version_1, exported, imported, sealed, without_digest
from support.polling import eventually
from support.services.partial_import import disk_used
from support.services.restarted_service import service

K, V = pair(4, 2, 3000)
CODEC = {"kind": "float16"}
NBYTES = 2 * K.size * 2
# Less than the session, more than the overhead of its evicted pages.
MEMORY = NBYTES // 4


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with service(tmp_path_factory.mktemp("roomy")) as caller:
        caller.append("a", K, V, codec=CODEC)
        return exported(caller, "a")


@pytest.mark.parametrize("durability", ["spill", "ack"])
def test_file_larger_than_memory_is_imported_and_read(tmp_path: Path, file: bytes, durability: str) -> None:
    flags = ("--memory-budget", str(MEMORY), "--durability", durability)
    with service(tmp_path, *flags, kill=durability == "ack") as caller:
        assert imported(caller, "b", file).status == 201
        assert caller.info("b")["tier"] in ("disk", "mixed")
        assert without_digest(exported(caller, "b")) == without_digest(file)
        position = caller.append("b", K[:, :, :1], V[:, :, :1]).body["position"]

    with service(tmp_path, *flags) as caller:
        assert position == 3000
        assert caller.info("b")["length"] == 3001
        assert caller.post("/sessions/b/truncate", {"length": 3000}).status == 200
        assert without_digest(exported(caller, "b")) == without_digest(file)


@pytest.mark.parametrize(
    "flags", [("--durability", "memory"), ("--disk-budget", str(NBYTES // 2)), ("--disk-budget", "0")]
)
def test_import_over_disk_budget_leaves_nothing(tmp_path: Path, file: bytes, flags: tuple[str, ...]) -> None:
    with service(tmp_path, "--memory-budget", str(MEMORY), *flags) as caller:
        imported(caller, "b", file).problem(507, "insufficient-storage")

        caller.get("/sessions/b").problem(404, "session-not-found")
        assert imported(caller, "b", file).status == 507
        assert caller.append("c", K[:1, :, :2], V[:1, :, :2]).status == 201
        assert [each["session"] for each in caller.get("/sessions").body["sessions"]] == ["c"]


def test_pages_of_a_rejected_file_are_removed(tmp_path: Path, file: bytes) -> None:
    """The last page is corrupt. All others are on disk before it is checked."""
    broken = bytearray(file)
    broken[-36:-34] = b"\x00\x7e"
    with service(tmp_path, "--memory-budget", str(MEMORY)) as caller:
        for damaged in (bytes(broken), sealed(bytes(broken)), as_version_1(bytes(broken))):
            assert imported(caller, "b", damaged).status == 422
        # Garbage pages are deleted in the background.
        eventually(lambda: disk_used(caller) < 64 << 10)


def test_float16_file_larger_than_memory_is_imported(tmp_path: Path) -> None:
    with service(tmp_path / "roomy") as caller:
        caller.append("a", K, V, codec=Codec(bits=8).to_mapping())
        file = exported(caller, "a")

    with service(tmp_path / "small", "--memory-budget", "1MiB") as caller:
        assert imported(caller, "b", file).status == 201
        assert caller.read("b")["length"] == 3000
