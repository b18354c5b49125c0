"""Synchronous calls that an exception of a signal handler interrupts at random moments."""

import random
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hadakv_client import Client, SessionNotFound
from support.processes import in_child, open_sockets

pytestmark = [pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]
LONGEST_SECONDS = 0.008


class Interrupted(BaseException):
    """Exception of the signal handler. It is no `Exception`, like KeyboardInterrupt."""


class Interrupts:
    """Timer that interrupts calls."""

    def __init__(self) -> None:
        self._is_armed = False
        signal.signal(signal.SIGALRM, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        if self._is_armed:
            self._is_armed = False
            raise Interrupted

    def is_interrupted(self, call: Callable[[], object], seconds: float) -> bool:
        """Make a call, and return whether it was interrupted."""
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            self._is_armed = True
            call()
            self._is_armed = False
        except Interrupted:
            return True
        return False


def interrupt_calls(url: str, calls: int) -> dict[str, int]:
    """Interrupt reads and appends of one session. Make one more call. Return what was counted."""
    interrupts, before, moments = Interrupts(), open_sockets(), random.Random(1)
    k = np.ones((4, 4, 64, 64), np.float16)
    with Client(url, timeout=20, retries=0) as client:
        session = client.session("interrupted", codec={"kind": "float16"})
        session.append(k, k, position=0)
        changes = [lambda: session.read(form="float32"), lambda: session.append(k, k, position=0)]
        interrupted = sum(
            interrupts.is_interrupted(changes[number % 4 == 3], moments.random() * LONGEST_SECONDS)
            for number in range(calls)
        )
        signal.setitimer(signal.ITIMER_REAL, 0)
        still_open = len(open_sockets() - before)
        session.delete()
    return {"calls": calls, "interrupted": interrupted, "open": still_open, "left": len(open_sockets() - before)}


@pytest.mark.parametrize("calls", [100, pytest.param(2000, marks=pytest.mark.exhaustive)])
def test_interrupted_calls_leave_no_connection(server: Any, calls: int) -> None:
    # The child has a main thread of its own, and no handler of pytest for exceptions in finalizers.
    counts = in_child(lambda: interrupt_calls(server.url, calls))()
    print(counts)  # noqa: T201 - for `pytest -s`

    assert counts["interrupted"] > calls // 20
    assert counts["open"] <= 1
    assert counts["left"] == 0


def test_interrupted_export_keeps_the_previous_file(server: Any, session_id: str, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    k, before = np.ones((8, 4, 2048, 64), np.float16), open_sockets()
    (tmp_path / "file").write_bytes(b"previous")

    with Client(server.url, retries=0) as client:
        session = client.session(session_id, {"kind": "float16"})
        session.append(k, k, minimal=True)
        with suppress(Interrupted):
            session.export(tmp_path / "file", interrupt)
        assert open_sockets() <= before, "the rest of the file is not received"
        assert session.info().length == 2048

    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"previous"


def test_interrupted_import_creates_nothing(server: Any, session_id: str, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    k, new = np.ones((8, 4, 2048, 64), np.float16), f"{session_id}-new"
    with Client(server.url, retries=0) as client:
        client.session(session_id, {"kind": "float16"}).append(k, k, minimal=True)
        client.session(session_id).export(tmp_path / "file")

        with suppress(Interrupted):
            client.import_session(tmp_path / "file", new, interrupt)

        with pytest.raises(SessionNotFound):
            client.session(new).info()
        assert client.import_session(tmp_path / "file", new).info().length == 2048
