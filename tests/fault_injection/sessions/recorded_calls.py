"""Requests with a record of what is expected before and after each of them."""

import threading
from collections.abc import Callable
from math import inf
from typing import Literal, TypeVar

from fault_injection.report import Tally, Violation
from fault_injection.sessions.model import Append, KnownSession, State
from hadakv_client import PositionConflict, Problem, SessionNotFound, TransportError

T = TypeVar("T")


class Trouble(threading.Event):
    """Period in which the disk is full or fails, with the number of such periods so far."""

    count = 0

    def set(self) -> None:
        """Start a period."""
        self.count += 1
        super().set()


class Expectations:
    """Failures that requests may meet. Shared by all threads of a round.

    Attributes:
        over: no further request is to be sent.
        ending: the service may end, so requests may get no response.
        trouble: requests may be rejected because the disk is full or fails.
        rejected: a request was rejected for that reason.
        unsynced_only: only requests that need no sync are sent, and those of `unsynced_change`.
        unsynced_change: the change that is sent meanwhile.
        evicting: sessions without `ack` may have been evicted.
        busy: only short appends to `spill` sessions are sent, without a pause.
        saved_until: every change of a `spill` session that was acknowledged before this time is on disk, according to
            the service. By `time.monotonic`.
    """

    def __init__(self, *, evicting: bool) -> None:
        self.over = threading.Event()
        self.ending = threading.Event()
        self.trouble = Trouble()
        self.rejected = threading.Event()
        self.unsynced_only = threading.Event()
        self.unsynced_change: Literal["truncate", "delete"] = "truncate"
        self.evicting = evicting
        self.busy = threading.Event()
        self.saved_until = -inf


class Rejected(Exception):
    """A request was rejected, as expected."""


class Evicted(Exception):
    """A session was evicted, as expected."""


class Caller:
    """Sender of requests that change sessions. It accepts the failures that are expected.

    Args:
        tally: counters.
        expected: failures that requests may meet.
    """

    def __init__(self, tally: Tally, expected: Expectations) -> None:
        self._tally = tally
        self._expected = expected

    def ask(self, known: KnownSession, call: Callable[[], T], state: State | None, append: Append | None = None) -> T:
        """Send a request that leads to a state.

        Raises:
            Rejected, Evicted: the request failed, as expected.
            Violation: the session is missing, though it must exist.
        """
        trouble, periods = self._expected.trouble.is_set(), self._expected.trouble.count
        known.ask(state, append)
        self._tally.add("requests")
        try:
            answer = call()
        except TransportError:
            self._tally.add("pending")
            raise
        except Problem as problem:
            known.rejected()
            # A period may also have started and ended during the request.
            trouble = trouble or self._expected.trouble.count != periods
            if problem.status in (503, 507) and trouble:
                self._tally.add("rejected")
                self._expected.rejected.set()
                raise Rejected from problem
            if problem.status == 507 and known.durability == "memory":
                # Splitting a page needs a second copy for a moment, which may exceed the memory budget.
                self._tally.add("rejected")
                raise Rejected from problem
            missing = isinstance(problem, SessionNotFound) or (
                isinstance(problem, PositionConflict) and problem.length == 0
            )
            if missing and (known.durability == "memory" or (known.durability == "spill" and self._expected.evicting)):
                known.state = None
                self._tally.add("lost")
                raise Evicted from problem
            if missing:
                raise Violation(f"{known.name} ({known.durability}) is missing: {problem}") from problem
            problem.add_note(
                f"{known.name} has durability {known.durability}, and had {known.state and known.state.lengths} tokens"
            )
            raise
        known.answered()
        return answer
