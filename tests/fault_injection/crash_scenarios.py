"""How rounds go: what befalls the service while calls are made, and how it ends."""

import errno
import signal
import threading
import time

from fault_injection.disk import Disk
from fault_injection.interpose import Action, Call, Interposed
from fault_injection.recorded_calls import Weather
from fault_injection.schedule import Plan
from fault_injection.service import Service

KILLED = -signal.SIGKILL
# Beyond what it was given.
END_SECONDS = 30.0
FORGOTTEN = 10**9


class Course:
    """The course of a round; by itself, calls and then kill -9.

    Attributes:
        weather: what its calls are to expect.
        dies_starting: it ends before it was asked anything.
        orderly: it is told to end, and left alone then.
        codes: with which exit code it may end.
    """

    dies_starting = False
    evicting = False

    def __init__(self, plan: Plan, service: Service, interposed: Interposed | None, room: Disk | None) -> None:
        self.plan = plan
        self.service = service
        self.rng = plan.rng("course")
        self.weather = Weather(evicting=self.evicting)
        self.orderly = False
        self.codes = {KILLED}
        self._interposed = interposed
        self._room = room

    @property
    def interposed(self) -> Interposed:
        """What stands between the service and its files."""
        assert self._interposed is not None
        return self._interposed

    def run(self) -> None:
        """Let it happen."""
        wait(self.plan.seconds)
        self.kill()

    def kill(self) -> None:
        """End the service with no warning."""
        self.weather.ending.set()
        self.service.kill()

    def terminate(self) -> None:
        """Tell the service to end."""
        self.orderly, self.codes = True, {0}
        self.weather.ending.set()
        self.service.terminate()

    def end_somehow(self) -> None:
        """One or the other."""
        self.rng.choice((self.kill, self.terminate))()

    def wait_for_death(self, seconds: float) -> None:
        """Give it some time to die of what was prepared for it; if it does not, kill it."""
        until = time.monotonic() + seconds
        while self.service.alive and time.monotonic() < until:
            wait(0.01)
        self.kill()


class Losing(Course):
    """It ends, mostly by kill -9, and what was not synced is lost; often after a while in which nothing need be."""

    def run(self) -> None:
        wait(self.plan.seconds / 2)
        if self.rng.random() < 0.8:
            self.weather.lazy_but = self.rng.choice(("truncate", "delete"))
            self.weather.lazy.set()
        wait(self.plan.seconds / 2)
        if self.rng.random() < 0.2:
            self.terminate()
        else:
            self.kill()


class Starting(Course):
    """It is killed at some moment of its start, or in some call it makes then."""

    dies_starting = True

    def run(self) -> None:
        if self._interposed and self.rng.random() < 0.5:
            call = self.rng.choice((Call.WRITE, Call.SYNC, Call.TRUNCATE))
            self.interposed.arm(Action.KILL, {call}, after=self.rng.randrange(8 if call is Call.WRITE else 2))
            self.wait_for_death(3.0)
        else:
            wait(self.rng.uniform(0.0, 1.5))
            self.kill()


class Calling(Course):
    """It is killed in a call that it makes."""

    calls = Call.WRITE
    most = 1500

    def run(self) -> None:
        self.weather.ending.set()
        self.interposed.arm(Action.KILL, {self.calls}, after=self.rng.randrange(self.most))
        self.wait_for_death(3 * self.plan.seconds)


class Syncing(Calling):
    """The same, where the call is one that makes what was written outlive a loss of power."""

    calls = Call.SYNC
    most = 40


class Ending(Course):
    """It is told to end."""

    def run(self) -> None:
        wait(self.plan.seconds)
        self.terminate()


class Hasty(Course):
    """It is told to end, and killed before it has."""

    def run(self) -> None:
        wait(self.plan.seconds)
        self.terminate()
        self.orderly, self.codes = False, {0, KILLED}
        wait(self.rng.uniform(0.0, 0.6))
        self.kill()


class Full(Course):
    """There is no room on the disk for a while."""

    def run(self) -> None:
        wait(self.plan.seconds / 3)
        # Where memory is full too, sessions that are not acknowledged end for others.
        self.weather.evicting = True
        self.weather.trouble.set()
        if self._room:
            self._room.fill(self.rng.randrange(512 << 10))
        else:
            self.interposed.arm(Action.FULL, {Call.WRITE}, after=self.rng.randrange(20), times=FORGOTTEN)
            if self.rng.random() < 0.3:
                self.interposed.take_all_room()
        wait(self.plan.seconds / 3)
        if self.rng.random() < 0.3:
            self.kill()
            return
        if self._room:
            self._room.make_room()
        else:
            self.interposed.disarm()
        # From now on every call has to succeed again.
        self.weather.trouble.clear()
        wait(self.plan.seconds / 3)
        self.end_somehow()


class Errors(Course):
    """Some calls fail, now and then."""

    def run(self) -> None:
        if self.rng.random() < 0.4:
            self._end_at_once()
            return
        for _ in range(3):
            wait(self.plan.seconds / 6)
            self.weather.trouble.set()
            calls = self.rng.choice(({Call.WRITE}, {Call.SYNC}, {Call.WRITE, Call.SYNC}))
            number = self.rng.choice((errno.EIO, errno.ENOSPC))
            times = self.rng.choice((1, 1, 3, 20))
            self.interposed.arm(Action.FAIL, calls, after=self.rng.randrange(20), times=times, error=number)
            wait(self.plan.seconds / 6)
            if self.rng.random() < 0.2:
                self.kill()
                return
            self.interposed.disarm()
            self.weather.trouble.clear()
        self.end_somehow()

    def _end_at_once(self) -> None:
        """Kill it as soon as anybody was told that something could not be synced."""
        wait(self.plan.seconds / 2)
        self.weather.trouble.set()
        self.interposed.arm(Action.FAIL, {Call.SYNC}, times=FORGOTTEN, error=errno.EIO)
        until = time.monotonic() + self.plan.seconds
        while not self.weather.refused.is_set() and time.monotonic() < until:
            wait(0.001)
        self.kill()


class Budget(Course):
    """There is little left of the disk budget."""

    evicting = True

    def run(self) -> None:
        self.weather.trouble.set()
        wait(self.plan.seconds)
        self.end_somehow()


_COURSES: dict[str, type[Course]] = {
    "write": Calling,
    "sync": Syncing,
    "power": Losing,
    "start": Starting,
    "term": Ending,
    "hasty": Hasty,
    "full": Full,
    "errors": Errors,
    "budget": Budget,
}


def course_of(plan: Plan, service: Service, interposed: Interposed | None, room: Disk | None) -> Course:
    """The course of a planned round."""
    return _COURSES.get(plan.kind, Course)(plan, service, interposed, room)


def wait(seconds: float) -> None:
    """Let time pass."""
    threading.Event().wait(seconds)
