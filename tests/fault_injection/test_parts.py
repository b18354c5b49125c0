"""Parts of the rounds: comparison of tokens, simulated power loss, schedule, deliberate faults."""

import random
import struct
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from fault_injection.faults.interpose import Call, journal_of
from fault_injection.faults.power_loss import SECTOR, lose_power
from fault_injection.faults.schedule import possible, schedule
from fault_injection.mutations import MUTATIONS
from fault_injection.report import Tally, Violation
from fault_injection.sessions.model import KnownSession, State
from fault_injection.sessions.pool import SHAPES, Pool
from fault_injection.sessions.recorded_calls import Evicted, Expectations
from fault_injection.sessions.workload import Worker
from hadakv_client import Client
from hadakv_kernels import Encoded, reference
from hadakv_service.sessions.session import Durability
from hadakv_service.testing import running_service


def encoded(pool: Pool, numbers: list[int]) -> tuple[Encoded, Encoded]:
    """Return the response that the service must give for those tokens."""
    k, v = pool.values(slice(None), np.array(numbers))
    specs = [codec.at(pool.shape.head_dim) for codec in pool.shape.codecs]
    return reference.encode(k, specs[0]), reference.encode(v, specs[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_pool_tokens_match_the_reference(shape: object) -> None:
    pool = Pool(shape, 1)  # type: ignore[arg-type]  # pytest passes shapes
    k, v = encoded(pool, [3, 0, 3, 200])

    nbytes, wrong = pool.difference(slice(None), np.array([3, 0, 3, 200]), k, v)

    assert not wrong
    assert nbytes == sum(part.nbytes for stream in (k, v) for part in (stream.packed, stream.norms))


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("part", ["packed", "norms"])
def test_one_wrong_bit_is_reported(stream: int, part: str) -> None:
    pool = Pool(SHAPES[1], 1)
    numbers = np.array([5, 6, 7])
    streams = encoded(pool, [5, 6, 7])
    getattr(streams[stream], part).view(np.uint8)[1, 0, 2, -1] ^= 1

    assert "layer 1, token 2" in pool.difference(slice(None), numbers, *streams)[1]


def test_wrong_tokens_or_wrong_count_are_reported() -> None:
    pool = Pool(SHAPES[0], 1)
    streams = encoded(pool, [1, 2, 3])

    assert not pool.difference(slice(None), np.array([1, 2, 3]), *streams)[1]
    assert pool.difference(slice(None), np.array([1, 3, 2]), *streams)[1]
    assert pool.difference(slice(None), np.array([1, 2]), *streams)[1]


def test_state_forgets_tokens_outside_the_window() -> None:
    state = State.empty(2, window=3).grown(slice(0, 1), np.arange(5)).grown(slice(0, 2), np.arange(2))

    assert state.lengths == (7, 2)
    assert [state.first(layer) for layer in (0, 1)] == [4, 0]
    assert state.cut(5).first(0) == 4


def record(call: Call, name: str, offset: int = 0, content: bytes = b"") -> bytes:
    """Return an entry of the journal."""
    return struct.pack("=iiqq", call, len(name), offset, len(content)) + name.encode() + content


class Fixed(random.Random):
    """Random generator that lets a fixed share of unsynced data reach the disk."""

    def __init__(self, share: float) -> None:
        super().__init__(1)
        self.share = share

    def choice(self, seq: object) -> float:  # type: ignore[override]  # noqa: ARG002 - the base class has it
        return self.share


@pytest.fixture
def disk(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return a directory before the process, the journal, and the directory to change."""
    before, directory = tmp_path / "before", tmp_path / "data"
    for folder in (before, directory):
        folder.mkdir()
        (folder / "file").write_bytes(b"old" * SECTOR)
    lines = [
        record(Call.WRITE, "file", 0, b"synced"),
        record(Call.SYNC, "file"),
        record(Call.WRITE, "file", SECTOR, b"x" * 2 * SECTOR),
        record(Call.TRUNCATE, "file", 3 * SECTOR),
        record(Call.WRITE, "log", 0, b"never synced"),
        record(Call.WRITE, "gone", 0, b"and taken away"),
        record(Call.UNLINK, "gone"),
        record(Call.WRITE, "file", 0, b"cut off by the kill")[:-1],
    ]
    (tmp_path / "journal").write_bytes(b"".join(lines))
    return before, tmp_path / "journal", directory


def test_journal_cut_off_is_read_to_last_full_entry(disk: tuple[Path, Path, Path]) -> None:
    calls = [change.call.name for change in journal_of(disk[1])]

    assert calls == ["WRITE", "SYNC", "WRITE", "TRUNCATE", "WRITE", "WRITE", "UNLINK"]


@pytest.mark.parametrize(("share", "changed"), [(0.0, False), (1.0, True)])
def test_power_loss_keeps_synced_data(disk: tuple[Path, Path, Path], share: float, changed: bool) -> None:
    lost = lose_power(*disk, Fixed(share))

    files = {path.name: path.read_bytes() for path in disk[2].iterdir()}
    old = b"synced" + (b"old" * SECTOR)[6:]
    new = old[:SECTOR] + b"x" * 2 * SECTOR
    assert files == {"file": new if changed else old, "log": b"never synced" if changed else b""}
    assert (lost == 0) == changed


def test_power_loss_can_tear_a_write(disk: tuple[Path, Path, Path]) -> None:
    found = set()
    for seed in range(20):
        rng = Fixed(0.5)
        rng.seed(seed)
        lose_power(*disk, rng)
        content = (disk[2] / "file").read_bytes()
        found.add((content[SECTOR] == ord("x"), content[2 * SECTOR] == ord("x")))

    assert found == {(a, b) for a in (False, True) for b in (False, True)}


def test_schedule_has_every_kind_and_repeats_by_seed() -> None:
    kinds = len(possible())

    plans = schedule(kinds + 40, 7, 1.0)

    assert {plan.kind for plan in plans[:kinds]} == set(possible())
    assert {plan.kind for plan in plans[-20:]} == set(possible())
    assert plans == schedule(kinds + 40, 7, 1.0)
    assert plans != schedule(kinds + 40, 8, 1.0)


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_deliberate_fault_applies(name: str) -> None:
    mutation = MUTATIONS[name]

    text = files("hadakv_service").joinpath(mutation.file).read_text("utf-8")

    assert text.count(mutation.right) == 1
    compile(text.replace(mutation.right, mutation.wrong), mutation.file, "exec")


@pytest.mark.parametrize("durability", ["memory", "ack"])
def test_misplaced_append_may_meet_an_evicted_session(durability: Durability) -> None:
    """At position 0 it creates a new session. For an `ack` session that is a violation."""
    pool = Pool(SHAPES[0], 1)
    alone = State.empty(pool.shape.layers, None).grown(slice(0, pool.shape.layers), np.array([3]))
    found = []
    with running_service("--durability", "memory") as service, Client(service.url) as client:
        for seed in range(20):
            known = KnownSession(f"w-{seed}", pool, durability, alone)
            worker = Worker("w", [known], [pool], random.Random(seed), Tally(), Expectations(evicting=True))
            worker._client = client
            try:
                worker._append_misplaced(known)
                found.append(f"new, {known.durability}")
            except (Evicted, Violation) as error:
                found.append(type(error).__name__)

    wanted = {"memory": {"new, ack", "Evicted"}, "ack": {"Violation"}}[durability]
    assert set(found) == wanted
