"""Detection of forks. A child process must not use connections and locks of its parent."""

import os
import weakref
from typing import ClassVar, Protocol


class ForkAware(Protocol):
    """Object with state that a forked child must not share with its parent."""

    def reset_after_fork(self) -> None:
        """Replace the inherited state. Runs in the child, before the child has other threads."""


class _Process:
    pid = os.getpid()
    owners: ClassVar["weakref.WeakSet[ForkAware]"] = weakref.WeakSet()


def register(owner: ForkAware) -> None:
    """Reset the object in every child that is forked during its life."""
    _Process.owners.add(owner)


def check_process() -> None:
    """Reset all registered objects if this process is a child that did not run the hooks of `os.register_at_fork`.

    C libraries that fork by themselves do not run the hooks.
    """
    if os.getpid() != _Process.pid:
        _reset_after_fork()


def _reset_after_fork() -> None:
    _Process.pid = os.getpid()
    for owner in list(_Process.owners):
        owner.reset_after_fork()


os.register_at_fork(after_in_child=_reset_after_fork)


class OneProcess:
    """Check that connections that belong to the caller are used in one process only."""

    def __init__(self) -> None:
        self._pid: int | None = None

    @property
    def is_foreign(self) -> bool:
        """Return whether another process has used the connections."""
        return self._pid not in (None, os.getpid())

    def check(self) -> None:
        """Record the process of the first use.

        Raises:
            RuntimeError: another process has used the connections.
        """
        if self.is_foreign:
            raise RuntimeError("this httpx client or transport was used before os.fork; create a client in the child")
        self._pid = os.getpid()
