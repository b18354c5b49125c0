"""Failing disk and power loss: each durability promise by itself, with the system calls of the real service."""

import errno
import random
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fault_injection.faults.interpose import AVAILABLE, Action, Call, Interposed
from fault_injection.faults.power_loss import lose_power
from fault_injection.faults.service import Service
from hadakv_kernels import Codec
from support.contract import Caller, stream
from support.polling import eventually
from support.services.program import WITH_TINY_MEMORY
from support.services.prometheus import metric

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="macOS does not preload a library into a signed program")

K, V = np.random.default_rng(5).standard_normal((2, 2, 1, 400, 64)).astype(np.float16)
ALWAYS = 10**9


class Nothing(random.Random):
    """Random generator that lets no unsynced data reach the disk."""

    def choice(self, seq: object) -> object:  # type: ignore[override]  # noqa: ARG002 - the base class has it
        return 0.0


class Place:
    """Data directory, with services on it and faults to inject."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.data.mkdir(mode=0o700)
        self.interposed = Interposed(folder)
        self._folder = folder

    @contextmanager
    def service(self, *flags: str, power: bool = False) -> Iterator[Caller]:
        """Start a service, and kill it at the end of the block. With `power`, unsynced data is lost then."""
        journal = self._folder / "journal" if power else None
        if power:
            shutil.copytree(self.data, self._folder / "before")
        flags = ("--data-dir", str(self.data), "--disk-budget", "1GiB", "--threads", "1", *flags)
        environment = self.interposed.environment(self.data, journal)
        with Service(WITH_TINY_MEMORY, flags, environment, self._folder / "log") as service:
            with Caller(service.ready()[0]) as caller:
                yield caller
            service.kill()
        self.interposed.disarm()
        if journal:
            lose_power(self._folder / "before", journal, self.data, Nothing())

    @contextmanager
    def orderly(self, *flags: str) -> Iterator[Caller]:
        """Start a service, and shut it down cleanly at the end of the block."""
        flags = ("--data-dir", str(self.data), "--disk-budget", "1GiB", "--threads", "1", *flags)
        environment = self.interposed.environment(self.data, None)
        with Service(WITH_TINY_MEMORY, flags, environment, self._folder / "log") as service:
            with Caller(service.ready()[0]) as caller:
                yield caller
            service.terminate()
            assert service.wait(60) == 0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def append(caller: Caller, session: str, start: int, stop: int) -> int:
    """Append tokens `start` to `stop`; return the status."""
    return caller.append(session, K[:, :, start:stop], V[:, :, start:stop], position=start).status


def append_in_parts(caller: Caller, session: str) -> None:
    """Append all tokens in parts, because memory cannot hold all of them."""
    for start in range(0, 400, 50):
        assert append(caller, session, start, start + 50) in (200, 201)


def tokens(caller: Caller, session: str) -> int:
    """Return the length of a session, 0 if it does not exist. Its tokens must be right."""
    if caller.get(f"/sessions/{session}").status == 404:
        return 0
    body = caller.read(session)
    wanted = [stream(np.ascontiguousarray(x[:, :, : body["length"]]), Codec()) for x in (K, V)]
    assert [body["k"], body["v"]] == wanted
    return int(body["length"])


@pytest.mark.parametrize("times", [1, ALWAYS])
def test_rejected_append_does_not_reappear_after_sync_error(place: Place, times: int) -> None:
    with place.service("--durability", "ack") as caller:
        assert [append(caller, name, 0, 300) for name in "ab"] == [201, 201]
        place.interposed.arm(Action.FAIL, {Call.SYNC}, error=errno.EIO, times=times)
        assert append(caller, "a", 300, 400) == 507
        assert tokens(caller, "a") == 300

    with place.service() as caller:
        assert (tokens(caller, "a"), tokens(caller, "b")) == (300, 300)
        assert append(caller, "a", 300, 400) == 200


def test_session_stays_if_its_deletion_cannot_be_synced(place: Place) -> None:
    with place.service("--durability", "ack") as caller:
        append(caller, "a", 0, 300)
        place.interposed.arm(Action.FAIL, {Call.SYNC}, error=errno.EIO, times=ALWAYS)
        caller.delete("/sessions/a").problem(503, "storage-unavailable")
        assert tokens(caller, "a") == 300

    with place.service() as caller:
        assert tokens(caller, "a") == 300
        assert caller.delete("/sessions/a").status == 204


def test_appends_succeed_once_the_disk_syncs_again(place: Place) -> None:
    with place.service("--durability", "ack", power=True) as caller:
        append(caller, "a", 0, 100)
        place.interposed.arm(Action.FAIL, {Call.SYNC}, error=errno.EIO, times=ALWAYS)
        assert [append(caller, "a", 100, 200), append(caller, "a", 100, 300)] == [507, 507]
        place.interposed.disarm()
        assert append(caller, "a", 100, 400) == 200

    with place.service() as caller:
        assert tokens(caller, "a") == 400


def test_acknowledged_changes_survive_power_loss(place: Place) -> None:
    with place.service("--durability", "ack", power=True) as caller:
        for start, stop in ((0, 1), (1, 257), (257, 400)):
            append(caller, "a", start, stop)
        caller.post("/sessions/a/fork", {"id": "b", "length": 300})
        caller.post("/sessions/a/truncate", {"length": 7})

    with place.service() as caller:
        assert (tokens(caller, "a"), tokens(caller, "b")) == (7, 300)


@pytest.mark.parametrize("durability", ["ack", "spill"])
def test_deleted_tokens_do_not_reappear_after_power_loss(place: Place, durability: str) -> None:
    with place.orderly("--durability", durability) as caller:
        for name in "abc":
            append(caller, name, 0, 400)

    with place.service("--durability", durability, power=True) as caller:
        assert caller.post("/sessions/b/truncate", {"length": 3}).status == 200
        assert caller.delete("/sessions/a").status == 204

    with place.service() as caller:
        assert tokens(caller, "a") == 0
        assert tokens(caller, "b") == (3 if durability == "ack" else 0)
        assert tokens(caller, "c") == 400


def test_evicted_sessions_do_not_reappear_after_power_loss(place: Place) -> None:
    with place.orderly() as caller:
        for name in "abc":
            append(caller, name, 0, 400)

    with place.service("--disk-budget", "200KiB", "--memory-budget", "48KiB", power=True) as caller:
        append_in_parts(caller, "d")
        gone = [name for name in "abc" if not tokens(caller, name)]

    assert gone
    with place.service() as caller:
        assert [tokens(caller, name) for name in gone] == [0] * len(gone)


def test_checkpoint_on_a_full_disk_is_logged_once_and_made_up_for(place: Place, tmp_path: Path) -> None:
    with place.service("--checkpoint-seconds", "0.1") as caller:
        place.interposed.arm(Action.FULL, {Call.WRITE}, times=ALWAYS)
        assert append(caller, "a", 0, 300) == 201
        eventually(lambda: metric(caller, "hadakv_checkpoint_failures_total") > 1)
        assert append(caller, "a", 300, 400) == 200
        assert tokens(caller, "a") == 400
        assert metric(caller, "hadakv_checkpoint_lag_seconds") > 0
        place.interposed.disarm()
        eventually(lambda: metric(caller, "hadakv_checkpoint_lag_seconds") == 0)

    log = (tmp_path / "log").read_text()
    assert [log.count(text) for text in ("checkpoint not written", "checkpoints are written again")] == [1, 1]
    with place.service() as caller:
        assert tokens(caller, "a") == 400


def test_checkpointed_session_survives_power_loss(place: Place) -> None:
    with place.service("--checkpoint-seconds", "0.1", power=True) as caller:
        append(caller, "a", 0, 300)
        eventually(lambda: metric(caller, "hadakv_checkpoint_lag_seconds") == 0)

    with place.service() as caller:
        assert tokens(caller, "a") == 300


def orphans(data: Path) -> int:
    """Return the number of unreferenced pages in the file."""
    connection = sqlite3.connect(data / "sessions.hadakv")
    (count,) = connection.execute("SELECT COUNT(*) FROM pages WHERE id NOT IN (SELECT page FROM holds)").fetchone()
    connection.close()
    return int(count)


def test_start_on_full_disk_serves_stored_sessions(place: Place) -> None:
    with place.service("--memory-budget", "48KiB") as caller:
        caller.put("/sessions/a", {"durability": "ack"})
        append(caller, "a", 0, 100)
        append_in_parts(caller, "b")
    assert orphans(place.data)

    place.interposed.arm(Action.FULL, {Call.WRITE}, times=ALWAYS)
    with place.service("--durability", "ack") as caller:
        assert tokens(caller, "a") == 100
        assert append(caller, "a", 100, 400) == 507
        place.interposed.disarm()
        assert append(caller, "a", 100, 400) == 200


def test_deleting_frees_space_on_a_full_disk(place: Place) -> None:
    with place.service("--durability", "ack") as caller:
        assert [append(caller, name, 0, 400) for name in "ab"] == [201, 201]
        place.interposed.report_full()
        caller.append("c", K, V).problem(507, "insufficient-storage")
        assert caller.delete("/sessions/a").status == 204
        assert append(caller, "c", 0, 400) == 201

    with place.service() as caller:
        assert [tokens(caller, name) for name in "abc"] == [0, 400, 400]


def test_start_without_any_disk_space_reports_the_reason(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    place.interposed.arm(Action.FULL, {Call.WRITE}, times=ALWAYS)

    with pytest.raises(AssertionError, match="database or disk is full"), place.service():
        pass

    assert sys.platform == "linux"
    assert capfd.readouterr().err == ""
