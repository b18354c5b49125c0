"""Files of sessions larger than memory: they go past it."""

from pathlib import Path

import pytest

from hadakv_kernels import Codec
from support.arrays import pair
from support.contract import Caller
from support.restarted_service import service
from support.session_files import exported, imported

K, V = pair(4, 2, 3000)
CODEC = {"kind": "float16"}
NBYTES = 2 * K.size * 2
# Less than the session, more than what its pages are counted as while they are on disk.
MEMORY = NBYTES // 4


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with service(tmp_path_factory.mktemp("roomy")) as caller:
        caller.append("a", K, V, codec=CODEC)
        return exported(caller, "a")


@pytest.mark.parametrize("durability", ["spill", "ack"])
def test_such_a_file_is_taken_and_read_back(tmp_path: Path, file: bytes, durability: str) -> None:
    flags = ("--memory-budget", str(MEMORY), "--durability", durability)
    with service(tmp_path, *flags, kill=durability == "ack") as caller:
        assert imported(caller, "b", file).status == 201
        assert caller.info("b")["tier"] in ("disk", "mixed")
        assert exported(caller, "b")[-NBYTES:] == file[-NBYTES:]
        position = caller.append("b", K[:, :, :1], V[:, :, :1]).body["position"]

    with service(tmp_path, *flags) as caller:
        assert position == 3000
        assert caller.info("b")["length"] == 3001
        assert caller.post("/sessions/b/truncate", {"length": 3000}).status == 200
        assert exported(caller, "b")[-NBYTES:] == file[-NBYTES:]


@pytest.mark.parametrize(
    "flags", [("--durability", "memory"), ("--disk-budget", str(NBYTES // 2)), ("--disk-budget", "0")]
)
def test_where_there_is_no_room_below_it_is_refused_and_nothing_is_left(
    tmp_path: Path, file: bytes, flags: tuple[str, ...]
) -> None:
    with service(tmp_path, "--memory-budget", str(MEMORY), *flags) as caller:
        imported(caller, "b", file).problem(507, "insufficient-storage")

        caller.get("/sessions/b").problem(404, "session-not-found")
        assert imported(caller, "b", file).status == 507
        assert caller.append("c", K[:1, :, :2], V[:1, :, :2]).status == 201
        assert [each["session"] for each in caller.get("/sessions").body["sessions"]] == ["c"]


def test_what_was_written_of_a_refused_file_goes(tmp_path: Path, file: bytes) -> None:
    """Its last page is spoiled: all others are on disk before that is seen."""
    broken = bytearray(file)
    broken[-4:-2] = b"\x00\x7e"
    with service(tmp_path, "--memory-budget", str(MEMORY)) as caller:
        assert imported(caller, "b", bytes(broken)).status == 422
        # Whoever comes next takes what is loose away.
        for i in range(3):
            caller.append("c", K[:1, :, i : i + 1], V[:1, :, i : i + 1])

        assert disk_used(caller) < 64 << 10


def disk_used(caller: Caller) -> int:
    metrics = caller.get("/metrics").content.decode()
    (line,) = [each for each in metrics.splitlines() if each.startswith('hadakv_tier_stored_bytes{tier="disk"}')]
    return int(float(line.split()[-1]))


def test_a_codec_of_another_kind_goes_below_too(tmp_path: Path) -> None:
    with service(tmp_path / "roomy") as caller:
        caller.append("a", K, V, codec=Codec(bits=8).to_mapping())
        file = exported(caller, "a")

    with service(tmp_path / "small", "--memory-budget", "600KiB") as caller:
        assert imported(caller, "b", file).status == 201
        assert caller.read("b")["length"] == 3000
