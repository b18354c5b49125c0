"""A round: start on what the rounds before left, read all of it back, make calls, end somehow, look at the file."""

import shutil
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fault_injection import disk
from fault_injection.check import Check
from fault_injection.crash_scenarios import END_SECONDS, Course, course_of
from fault_injection.interpose import AVAILABLE, Interposed
from fault_injection.model import Known
from fault_injection.pool import SHAPES, Pool
from fault_injection.power_loss import lose_power
from fault_injection.report import Tally, Violation
from fault_injection.schedule import Plan
from fault_injection.service import Service
from fault_injection.workload import ANSWER_SECONDS, Worker
from hadakv_client import Client
from hadakv_service.storage.disk.sqlite_file import page_cost
from hadakv_service.storage.disk.sqlite_transaction import SESSION_NBYTES

WORKERS = 5
FILE = "sessions.hadakv"
GRACE_SECONDS = 10
FLAGS = ("--durability", "ack", "--threads", "1", "--backend", "cpu")
# The first has room for the largest append and little else.
MEMORY = ("1331KiB", "2MiB", "4MiB")


class Rounds:
    """Rounds on one data directory.

    Args:
        folder: where everything lies.
        seed: what tokens are made from.
        program: what Python is to run.

    Attributes:
        tally: what they have done and found.
        data: the data directory.
    """

    def __init__(self, folder: Path, seed: int, program: Sequence[str]) -> None:
        self.tally = Tally()
        self.data = folder / "data"
        self.data.mkdir(mode=0o700)
        self._folder = folder
        self._program = program
        self._pools = [Pool(shape, seed + i) for i, shape in enumerate(SHAPES)]
        self._owned: list[list[Known]] = [[] for _ in range(WORKERS)]
        self._interposed = Interposed(folder) if AVAILABLE else None
        # Whether all that may outlive a process must be there: the one before ended in order.
        self._exact = True
        self._used = 0

    def play(self, plan: Plan) -> None:
        """Play a round.

        Raises:
            Violation: something is not as it must be.
        """
        self.tally.kinds[plan.kind] += 1
        acted = self._interposed.acted if self._interposed else 0
        with ExitStack() as stack:
            data, room = self.data, None
            if plan.kind == "full" and disk.can_mount() and plan.rng("disk").random() < 0.5:
                room = stack.enter_context(disk.small_disk(self._folder / "disk", self.data))
                data = room.data
            journal = self._folder / "journal" if plan.kind == "power" else None
            if journal:
                shutil.copytree(self.data, self._folder / "before", dirs_exist_ok=True)
            service = stack.enter_context(self._start(plan, data, journal))
            course = course_of(plan, service, self._interposed, room)
            self._live(plan, service, course)
            self._end(service, course)
        if self._interposed:
            self.tally.add("faults", self._interposed.acted - acted)
        if journal:
            rng = plan.rng("power")
            self.tally.add("lost bytes", lose_power(self._folder / "before", journal, self.data, rng))
            journal.unlink()
            shutil.rmtree(self._folder / "before")
        self._inspect()
        if self.tally.violations:
            raise Violation("; ".join(self.tally.violations))

    def _start(self, plan: Plan, data: Path, journal: Path | None) -> Service:
        budget = self._used + plan.rng("budget").randrange(1 << 20) if plan.kind == "budget" else 1 << 30
        memory = plan.rng("memory").choice(MEMORY)
        flags = ["--data-dir", str(data), "--disk-budget", str(budget), "--memory-budget", memory]
        flags += ["--shutdown-timeout", str(GRACE_SECONDS), *FLAGS]
        environment = {}
        if self._interposed:
            self._interposed.disarm()
            environment = self._interposed.environment(data, journal)
        return Service(self._program, flags, environment, self._folder / f"round-{plan.number:03}.log")

    def _live(self, plan: Plan, service: Service, course: Course) -> None:
        """What happens from the start of a process until it is to end."""
        if course.dies_starting:
            course.run()
            return
        url, seconds = service.ready()
        self.tally.restarts.append(seconds)
        with Client(url, retries=0, timeout=ANSWER_SECONDS) as client:
            check = Check(client, self.tally, exact=self._exact, tight=course.evicting)
            check.everything(self.sessions)
        self._owned = [[known for known in owned if known.state] for owned in self._owned]
        threads = []
        for i, owned in enumerate(self._owned):
            worker = Worker(f"w{i}", owned, self._pools, plan.rng(f"worker {i}"), self.tally, course.weather)
            threads.append(threading.Thread(target=worker.run, args=(url,), daemon=True))
            threads[-1].start()
        try:
            course.run()
        finally:
            course.weather.over.set()
            for thread in threads:
                thread.join(ANSWER_SECONDS + END_SECONDS)
        if any(thread.is_alive() for thread in threads):
            raise Violation("a call was neither answered nor broken off")

    @property
    def sessions(self) -> list[Known]:
        """Everybody's."""
        return [known for owned in self._owned for known in owned]

    def _end(self, service: Service, course: Course) -> None:
        began = time.monotonic()
        code = service.wait(GRACE_SECONDS + END_SECONDS)
        if course.orderly:
            self.tally.stops.append(time.monotonic() - began)
        if self._interposed:
            self._interposed.disarm()
        self.tally.codes[code] += 1
        if code not in course.codes:
            raise Violation(f"the service ended with {code}; {service.last_words()}")
        if complaint := service.complaint():
            raise Violation(f"the service complained: {complaint}")
        self._exact = code == 0 and not course.weather.evicting

    def _inspect(self) -> None:
        """Check a copy of the file, which recovers by itself without the service's having seen it.

        Raises:
            Violation: it is corrupt.
        """
        copy = self._folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.data, copy)
        if not (copy / FILE).exists():
            return
        connection = sqlite3.connect(copy / FILE)
        try:
            verdict = connection.execute("PRAGMA integrity_check").fetchall()
            if verdict != [("ok",)]:
                raise Violation(f"the file is corrupt: {verdict[:3]}")
            self.tally.add("integrity")
            if connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone() != (0,):
                self._inspect_rows(connection)
        except sqlite3.Error as error:
            raise Violation(f"the file is corrupt: {error}") from error
        finally:
            connection.close()

    def _inspect_rows(self, connection: sqlite3.Connection) -> None:
        def number(query: str) -> int:
            return int(connection.execute(query).fetchone()[0])

        for query in (
            "SELECT COUNT(*) FROM holds WHERE page NOT IN (SELECT id FROM pages)",
            "SELECT COUNT(*) FROM holds WHERE session NOT IN (SELECT id FROM sessions)",
        ):
            if number(query):
                raise Violation(f"rows hang loose: {query} is {number(query)}")
        pages = connection.execute("SELECT nbytes FROM pages").fetchall()
        self._used = (
            sum(page_cost(nbytes) for (nbytes,) in pages) + number("SELECT COUNT(*) FROM sessions") * SESSION_NBYTES
        )

    def finish(self, plan: Plan) -> None:
        """Start once more, check all, delete all, end: then nothing may be left in the file.

        Raises:
            Violation: something is not as it must be.
        """
        with self._start(plan, self.data, None) as service:
            url, seconds = service.ready()
            self.tally.restarts.append(seconds)
            with Client(url, retries=0, timeout=ANSWER_SECONDS) as client:
                Check(client, self.tally, exact=self._exact).everything(self.sessions)
                for info in list(client.sessions()):
                    client.session(info.session).delete()
            service.terminate()
            code = service.wait(GRACE_SECONDS + END_SECONDS)
            self.tally.codes[code] += 1
            if code or service.complaint():
                raise Violation(f"the service ended with {code}; {service.complaint() or service.last_words()}")
        self._inspect()
        if self._used:
            raise Violation(f"{self._used} bytes are left in the file though every session was deleted")
