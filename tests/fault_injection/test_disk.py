"""A disk that fails, and a loss of power: each promise by itself, in what the real service asks of the kernel."""

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

from fault_injection.interpose import AVAILABLE, Action, Call, Interposed
from fault_injection.power_loss import lose_power
from fault_injection.service import Service
from hadakv_kernels import Codec
from support.contract import Caller, stream

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="macOS lets no library into a signed program before all others")

K, V = np.random.default_rng(5).standard_normal((2, 2, 1, 400, 64)).astype(np.float16)
ALWAYS = 10**9


class Nothing(random.Random):
    """Lets nothing that was not synced reach the disk."""

    def choice(self, seq: object) -> object:  # type: ignore[override]  # noqa: ARG002 - one there is in any case
        return 0.0


class Place:
    """A data directory, services on it, and what befalls them."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.data.mkdir(mode=0o700)
        self.interposed = Interposed(folder)
        self._folder = folder

    @contextmanager
    def service(self, *flags: str, power: bool = False) -> Iterator[Caller]:
        """A service that is killed at the end of the block; or, with `power`, all that was not synced is lost then."""
        journal = self._folder / "journal" if power else None
        if power:
            shutil.copytree(self.data, self._folder / "before")
        flags = ("--data-dir", str(self.data), "--disk-budget", "1GiB", "--threads", "1", *flags)
        environment = self.interposed.environment(self.data, journal)
        with Service(("-m", "hadakv_service"), flags, environment, self._folder / "log") as service:
            with Caller(service.ready()[0]) as caller:
                yield caller
            service.kill()
        self.interposed.disarm()
        if journal:
            lose_power(self._folder / "before", journal, self.data, Nothing())

    @contextmanager
    def orderly(self, *flags: str) -> Iterator[Caller]:
        """A service that ends in order."""
        flags = ("--data-dir", str(self.data), "--disk-budget", "1GiB", "--threads", "1", *flags)
        environment = self.interposed.environment(self.data, None)
        with Service(("-m", "hadakv_service"), flags, environment, self._folder / "log") as service:
            with Caller(service.ready()[0]) as caller:
                yield caller
            service.terminate()
            assert service.wait(60) == 0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def append(caller: Caller, session: str, start: int, stop: int) -> int:
    """Append those of the tokens; the status."""
    return caller.append(session, K[:, :, start:stop], V[:, :, start:stop], position=start).status


def append_in_parts(caller: Caller, session: str) -> None:
    """Append all of them, where memory has no room for so many."""
    for start in range(0, 400, 50):
        assert append(caller, session, start, start + 50) in (200, 201)


def tokens(caller: Caller, session: str) -> int:
    """How many of the tokens a session has, 0 if there is none; they must be the right ones."""
    if caller.get(f"/sessions/{session}").status == 404:
        return 0
    body = caller.read(session)
    wanted = [stream(np.ascontiguousarray(x[:, :, : body["length"]]), Codec()) for x in (K, V)]
    assert [body["k"], body["v"]] == wanted
    return int(body["length"])


@pytest.mark.parametrize("times", [1, ALWAYS])
def test_what_could_not_be_synced_was_refused_and_does_not_come_back(place: Place, times: int) -> None:
    with place.service("--durability", "ack") as caller:
        assert [append(caller, name, 0, 300) for name in "ab"] == [201, 201]
        place.interposed.arm(Action.FAIL, {Call.SYNC}, error=errno.EIO, times=times)
        assert append(caller, "a", 300, 400) == 507
        assert tokens(caller, "a") == 300

    with place.service() as caller:
        assert (tokens(caller, "a"), tokens(caller, "b")) == (300, 300)
        assert append(caller, "a", 300, 400) == 200


def test_a_session_whose_deletion_could_not_be_synced_is_still_there(place: Place) -> None:
    with place.service("--durability", "ack") as caller:
        append(caller, "a", 0, 300)
        place.interposed.arm(Action.FAIL, {Call.SYNC}, error=errno.EIO, times=ALWAYS)
        caller.delete("/sessions/a").problem(503, "storage-unavailable")
        assert tokens(caller, "a") == 300

    with place.service() as caller:
        assert tokens(caller, "a") == 300
        assert caller.delete("/sessions/a").status == 204


def test_once_the_disk_syncs_again_all_goes_on(place: Place) -> None:
    with place.service("--durability", "ack", power=True) as caller:
        append(caller, "a", 0, 100)
        place.interposed.arm(Action.FAIL, {Call.SYNC}, error=errno.EIO, times=ALWAYS)
        assert [append(caller, "a", 100, 200), append(caller, "a", 100, 300)] == [507, 507]
        place.interposed.disarm()
        assert append(caller, "a", 100, 400) == 200

    with place.service() as caller:
        assert tokens(caller, "a") == 400


def test_what_is_acknowledged_outlives_a_loss_of_power(place: Place) -> None:
    with place.service("--durability", "ack", power=True) as caller:
        for start, stop in ((0, 1), (1, 257), (257, 400)):
            append(caller, "a", start, stop)
        caller.post("/sessions/a/fork", {"id": "b", "length": 300})
        caller.post("/sessions/a/truncate", {"length": 7})

    with place.service() as caller:
        assert (tokens(caller, "a"), tokens(caller, "b")) == (7, 300)


@pytest.mark.parametrize("durability", ["ack", "spill"])
def test_what_was_deleted_or_cut_does_not_come_back_after_a_loss_of_power(place: Place, durability: str) -> None:
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


def test_who_had_to_go_does_not_come_back_after_a_loss_of_power(place: Place) -> None:
    with place.orderly() as caller:
        for name in "abc":
            append(caller, name, 0, 400)

    with place.service("--disk-budget", "200KiB", "--memory-budget", "48KiB", power=True) as caller:
        append_in_parts(caller, "d")
        gone = [name for name in "abc" if not tokens(caller, name)]

    assert gone
    with place.service() as caller:
        assert [tokens(caller, name) for name in gone] == [0] * len(gone)


def orphans(data: Path) -> int:
    """Pages in the file that no session holds."""
    connection = sqlite3.connect(data / "sessions.hadakv")
    (count,) = connection.execute("SELECT COUNT(*) FROM pages WHERE id NOT IN (SELECT page FROM holds)").fetchone()
    connection.close()
    return int(count)


def test_a_start_on_a_full_disk_gives_what_there_is(place: Place) -> None:
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


def test_where_the_disk_has_no_room_left_deleting_makes_some(place: Place) -> None:
    with place.service("--durability", "ack") as caller:
        assert [append(caller, name, 0, 400) for name in "ab"] == [201, 201]
        place.interposed.take_all_room()
        caller.append("c", K, V).problem(507, "insufficient-storage")
        assert caller.delete("/sessions/a").status == 204
        assert append(caller, "c", 0, 400) == 201

    with place.service() as caller:
        assert [tokens(caller, name) for name in "abc"] == [0, 400, 400]


def test_a_disk_too_full_for_anything_is_no_riddle(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    place.interposed.arm(Action.FULL, {Call.WRITE}, times=ALWAYS)

    with pytest.raises(AssertionError, match="database or disk is full"), place.service():
        pass

    assert sys.platform == "linux"
    assert capfd.readouterr().err == ""
