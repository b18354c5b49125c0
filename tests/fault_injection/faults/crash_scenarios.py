"""Scenarios of rounds: which fault is injected while requests are sent, and how the service ends."""

import errno
import signal
import threading
import time

from fault_injection.faults.disk import Disk
from fault_injection.faults.interpose import Action, Call, Interposed
from fault_injection.faults.schedule import Plan
from fault_injection.faults.service import Service
from fault_injection.report import Violation
from fault_injection.sessions.recorded_calls import Expectations

KILLED = -signal.SIGKILL
# Seconds that a shutdown may take beyond --shutdown-timeout.
END_SECONDS = 30.0
# Seconds after which a checkpoint is missing. The interval is a second.
CHECKPOINT_PATIENCE = 30.0
DAY_SECONDS = 86400
ALWAYS = 10**9


class Scenario:
    """Scenario of a round. The base class sends requests and then kills the service with SIGKILL.

    Attributes:
        expected: failures that requests may meet.
        ends_at_start: the service ends before it gets a request.
        evicting: sessions without `ack` may be evicted.
        starts_in_trouble: requests may be rejected from the first one on, before `run` is called.
        orderly: the service shuts down cleanly.
        codes: allowed exit codes.
    """

    ends_at_start = False
    evicting = False
    starts_in_trouble = False

    def __init__(self, plan: Plan, service: Service, interposed: Interposed | None, small_disk: Disk | None) -> None:
        self.plan = plan
        self.service = service
        self.rng = plan.rng("scenario")
        self.expected = Expectations(evicting=self.evicting)
        self.orderly = False
        self.codes = {KILLED}
        self._interposed = interposed
        self._disk = small_disk

    @property
    def interposed(self) -> Interposed:
        """Library between the service and its files."""
        assert self._interposed is not None
        return self._interposed

    def run(self) -> None:
        """Run the scenario until the service ends or is told to end."""
        wait(self.plan.seconds)
        self.kill()

    def kill(self) -> None:
        """Kill the service."""
        self.expected.ending.set()
        self.service.kill()

    def terminate(self) -> None:
        """Send SIGTERM. The service must shut down cleanly."""
        self.end_orderly(signal.SIGTERM)

    def end_orderly(self, sent: signal.Signals) -> None:
        """Send a signal after which the service must shut down cleanly."""
        self.orderly, self.codes = True, {0}
        self.expected.ending.set()
        self.service.send(sent)

    def kill_or_terminate(self) -> None:
        """Kill or terminate the service, at random."""
        self.rng.choice((self.kill, self.terminate))()

    def wait_for_death(self, seconds: float) -> None:
        """Wait until the armed fault has killed the service. Kill it after the timeout."""
        until = time.monotonic() + seconds
        while self.service.alive and time.monotonic() < until:
            wait(0.01)
        self.kill()


class PowerLoss(Scenario):
    """Loss of power: the service ends, mostly by SIGKILL, and data that was not synced is lost.

    Often no request that needs a sync is sent in the second half.
    """

    def run(self) -> None:
        wait(self.plan.seconds / 2)
        if self.rng.random() < 0.8:
            self.expected.unsynced_change = self.rng.choice(("truncate", "delete"))
            self.expected.unsynced_only.set()
        wait(self.plan.seconds / 2)
        if self.rng.random() < 0.2:
            self.terminate()
        else:
            self.kill()


class KillAtStart(Scenario):
    """The service is killed while it starts: at a random time, or in a write, sync or truncate."""

    ends_at_start = True

    def run(self) -> None:
        if self._interposed and self.rng.random() < 0.5:
            call = self.rng.choice((Call.WRITE, Call.SYNC, Call.TRUNCATE))
            self.interposed.arm(Action.KILL, {call}, after=self.rng.randrange(8 if call is Call.WRITE else 2))
            self.wait_for_death(3.0)
        else:
            wait(self.rng.uniform(0.0, 1.5))
            self.kill()


class KillInWrite(Scenario):
    """The service is killed halfway through a write."""

    calls = Call.WRITE
    most = 1500

    def run(self) -> None:
        self.expected.ending.set()
        self.interposed.arm(Action.KILL, {self.calls}, after=self.rng.randrange(self.most))
        self.wait_for_death(3 * self.plan.seconds)


class KillInSync(KillInWrite):
    """The service is killed before an fsync."""

    calls = Call.SYNC
    most = 40


class Terminate(Scenario):
    """The service gets SIGTERM and shuts down cleanly."""

    def run(self) -> None:
        wait(self.plan.seconds)
        self.terminate()


class HangUp(Scenario):
    """The service gets SIGHUP, as from a closed terminal, and shuts down cleanly."""

    def run(self) -> None:
        wait(self.plan.seconds)
        self.end_orderly(signal.SIGHUP)
        if self.rng.random() < 0.5:
            # A shell and the terminal may both send it.
            wait(self.rng.uniform(0.0, 0.2))
            self.service.send(signal.SIGHUP)


class TerminateThenKill(Scenario):
    """The service gets SIGTERM, and is killed while it shuts down."""

    def run(self) -> None:
        wait(self.plan.seconds)
        self.terminate()
        self.orderly, self.codes = False, {0, KILLED}
        wait(self.rng.uniform(0.0, 0.6))
        self.kill()


class DiskFull(Scenario):
    """The disk is full for a while."""

    def run(self) -> None:
        wait(self.plan.seconds / 3)
        # When memory is full too, sessions without `ack` are evicted for others.
        self.expected.evicting = True
        self.expected.trouble.set()
        if self._disk:
            self._disk.fill(self.rng.randrange(512 << 10))
        else:
            self.interposed.arm(Action.FULL, {Call.WRITE}, after=self.rng.randrange(20), times=ALWAYS)
            if self.rng.random() < 0.3:
                self.interposed.report_full()
        wait(self.plan.seconds / 3)
        if self.rng.random() < 0.3:
            self.kill()
            return
        if self._disk:
            self._disk.free_space()
        else:
            self.interposed.disarm()
        # From now on every request must succeed again.
        self.expected.trouble.clear()
        wait(self.plan.seconds / 3)
        self.kill_or_terminate()


class FailingCalls(Scenario):
    """Some writes and syncs fail, a few times in a round."""

    def run(self) -> None:
        if self.rng.random() < 0.4:
            self._kill_after_failed_sync()
            return
        for _ in range(3):
            wait(self.plan.seconds / 6)
            self.expected.trouble.set()
            calls = self.rng.choice(({Call.WRITE}, {Call.SYNC}, {Call.WRITE, Call.SYNC}))
            number = self.rng.choice((errno.EIO, errno.ENOSPC))
            times = self.rng.choice((1, 1, 3, 20))
            self.interposed.arm(Action.FAIL, calls, after=self.rng.randrange(20), times=times, error=number)
            wait(self.plan.seconds / 6)
            if self.rng.random() < 0.2:
                self.kill()
                return
            self.interposed.disarm()
            self.expected.trouble.clear()
        self.kill_or_terminate()

    def _kill_after_failed_sync(self) -> None:
        """Kill the service as soon as a request was rejected because a sync failed."""
        wait(self.plan.seconds / 2)
        self.expected.trouble.set()
        self.interposed.arm(Action.FAIL, {Call.SYNC}, times=ALWAYS, error=errno.EIO)
        until = time.monotonic() + self.plan.seconds
        while not self.expected.rejected.is_set() and time.monotonic() < until:
            wait(0.001)
        self.kill()


class LittleDiskBudget(Scenario):
    """The disk budget is nearly used up."""

    evicting = True
    starts_in_trouble = True

    def run(self) -> None:
        wait(self.plan.seconds)
        self.kill_or_terminate()


class KillAfterCheckpoint(Scenario):
    """Sessions get tokens without a pause. The service is killed after it has checkpointed them nevertheless."""

    def run(self) -> None:
        wait(self.plan.seconds / 3)
        self.expected.busy.set()
        wait(self.plan.seconds / 3)
        moment = time.monotonic()
        while self.service.alive and self.expected.saved_until < moment:
            if time.monotonic() > moment + CHECKPOINT_PATIENCE:
                raise Violation(f"no checkpoint of sessions in use within {CHECKPOINT_PATIENCE:g} s")
            wait(0.01)
        self.kill()


class SlowDisk(Scenario):
    """Each fsync takes long. Sessions are appended to, and truncated or deleted, while checkpoints write them."""

    def run(self) -> None:
        wait(self.plan.seconds / 3)
        self.interposed.arm(Action.SLOW, {Call.SYNC}, times=ALWAYS, error=self.rng.choice((30, 100, 200)))
        self.expected.unsynced_change = self.rng.choice(("truncate", "delete"))
        self.expected.unsynced_only.set()
        wait(self.plan.seconds)
        self.kill()


class WallClockStep(Scenario):
    """The wall clock is set. Sessions with a TTL of a day must stay."""

    def run(self) -> None:
        for _ in range(2):
            wait(self.plan.seconds / 3)
            self.interposed.set_wall_clock(self.rng.choice((-30, 30)) * DAY_SECONDS)
        wait(self.plan.seconds / 3)
        self.kill_or_terminate()


_SCENARIOS: dict[str, type[Scenario]] = {
    "write": KillInWrite,
    "sync": KillInSync,
    "power": PowerLoss,
    "start": KillAtStart,
    "term": Terminate,
    "hangup": HangUp,
    "hasty": TerminateThenKill,
    "full": DiskFull,
    "errors": FailingCalls,
    "budget": LittleDiskBudget,
    "busy": KillAfterCheckpoint,
    "clock": WallClockStep,
    "slow": SlowDisk,
}


def scenario_of(plan: Plan, service: Service, interposed: Interposed | None, small_disk: Disk | None) -> Scenario:
    """Return the scenario of a planned round."""
    return _SCENARIOS.get(plan.kind, Scenario)(plan, service, interposed, small_disk)


def wait(seconds: float) -> None:
    """Sleep."""
    threading.Event().wait(seconds)
