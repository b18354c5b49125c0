"""Forked children of a test, and the sockets of a process."""

import os
import pickle
import signal
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any

CHILD_SECONDS = 60


def in_child(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start work in a forked child. Return a function that waits for its result, or raises its exception."""
    result, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        # A child that hangs dies by the alarm, so that its parent reads the end of the pipe.
        signal.alarm(CHILD_SECONDS)
        try:
            outcome = (True, work())
        except BaseException as error:
            outcome = (False, error)
        with os.fdopen(into, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(into)

    def wait() -> Any:
        with os.fdopen(result, "rb") as pipe:
            pickled = pipe.read()
        os.waitpid(pid, 0)
        assert pickled, "the child hung or died"
        succeeded, outcome = pickle.loads(pickled)
        if not succeeded:
            raise outcome
        return outcome

    return wait


def open_sockets() -> set[int]:
    """Return the inodes of the sockets that this process has open."""
    inodes = set()
    for name in os.listdir("/dev/fd"):
        # The descriptor of the listing itself is closed by now.
        with suppress(OSError):
            status = os.fstat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                inodes.add(status.st_ino)
    return inodes
