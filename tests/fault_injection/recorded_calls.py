"""How calls are made: what is noted before and after each, and what may become of it."""

import threading
from collections.abc import Callable
from typing import Literal, TypeVar

from fault_injection.model import Append, Known, State
from fault_injection.report import Tally, Violation
from hadakv_client import PositionConflict, Problem, SessionNotFound, TransportError

T = TypeVar("T")


class Weather:
    """What is to be expected, for all threads of a round.

    Attributes:
        over: there is to be no further call.
        ending: the service may end, so that calls go without an answer.
        trouble: calls may be refused for want of room, or of a disk.
        refused: one was.
        lazy: only such calls are made as need not be synced at once.
        lazy_but: except for those that truncate, or those that delete.
        evicting: sessions that are not acknowledged may be gone.
    """

    def __init__(self, *, evicting: bool) -> None:
        self.over = threading.Event()
        self.ending = threading.Event()
        self.trouble = threading.Event()
        self.refused = threading.Event()
        self.lazy = threading.Event()
        self.lazy_but: Literal["truncate", "delete"] = "truncate"
        self.evicting = evicting


class Refused(Exception):
    """A call was refused, as was to be expected."""


class Gone(Exception):
    """A session was evicted, as was to be expected."""


class Caller:
    """Makes calls that change sessions, and knows what is to be expected of them.

    Args:
        tally: counts.
        weather: what is to be expected.
    """

    def __init__(self, tally: Tally, weather: Weather) -> None:
        self._tally = tally
        self._weather = weather

    def ask(self, known: Known, call: Callable[[], T], state: State | None, append: Append | None = None) -> T:
        """Make a call that leads to a state."""
        trouble = self._weather.trouble.is_set()
        known.ask(state, append)
        self._tally.add("requests")
        try:
            answer = call()
        except TransportError:
            self._tally.add("unanswered")
            raise
        except Problem as problem:
            known.refused()
            if problem.status in (503, 507) and (trouble or self._weather.trouble.is_set()):
                self._tally.add("refused")
                self._weather.refused.set()
                raise Refused from problem
            if problem.status == 507 and known.durability == "memory":
                # It would be more than memory is for, with the second copy that a split needs for a moment.
                self._tally.add("refused")
                raise Refused from problem
            missing = isinstance(problem, SessionNotFound) or (
                isinstance(problem, PositionConflict) and problem.length == 0
            )
            if missing and (known.durability == "memory" or (known.durability == "spill" and self._weather.evicting)):
                known.state = None
                self._tally.add("lost")
                raise Gone from problem
            if missing:
                raise Violation(f"{known.name} ({known.durability}) is gone: {problem}") from problem
            problem.add_note(f"{known.name} is for {known.durability}, and held {known.state and known.state.lengths}")
            raise
        known.answered()
        return answer
