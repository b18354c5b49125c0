"""Rounds: start on the data of the previous round, read all of it, send requests, end, inspect the file."""

import shutil
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from math import inf
from pathlib import Path

from fault_injection.faults import disk
from fault_injection.faults.crash_scenarios import END_SECONDS, Scenario, scenario_of
from fault_injection.faults.interpose import AVAILABLE, Interposed
from fault_injection.faults.power_loss import lose_power
from fault_injection.faults.schedule import Plan
from fault_injection.faults.service import Service
from fault_injection.report import Tally, Violation
from fault_injection.sessions.check import Check
from fault_injection.sessions.figures import Figures
from fault_injection.sessions.model import KnownSession
from fault_injection.sessions.pool import SHAPES, Pool
from fault_injection.sessions.workload import ANSWER_SECONDS, Worker
from hadakv_client import Client
from hadakv_service.storage.disk.sqlite_file import page_cost
from hadakv_service.storage.disk.sqlite_transaction import SESSION_NBYTES

WORKERS = 5
FILE = "sessions.hadakv"
GRACE_SECONDS = 10
FLAGS = ("--durability", "ack", "--threads", "1", "--backend", "cpu")
# The first is only a little larger than the largest append.
MEMORY = ("1331KiB", "2MiB", "4MiB")
CHECKPOINT_SECONDS = ("0.1", "0.3", "1", "30")


class Rounds:
    """Rounds on one data directory.

    Args:
        folder: folder for the data directory, the logs and the library.
        seed: random seed of the tokens.
        program: arguments of Python that start the service.

    Attributes:
        tally: counters and violations.
        data: the data directory.
    """

    def __init__(self, folder: Path, seed: int, program: Sequence[str]) -> None:
        self.tally = Tally()
        self.data = folder / "data"
        self.data.mkdir(mode=0o700)
        self._folder = folder
        self._program = program
        self._pools = [Pool(shape, seed + i) for i, shape in enumerate(SHAPES)]
        self._owned: list[list[KnownSession]] = [[] for _ in range(WORKERS)]
        self._interposed = Interposed(folder) if AVAILABLE else None
        # Whether `spill` sessions must be complete, because the last process shut down cleanly.
        self._exact = True
        self._used = 0

    def play(self, plan: Plan) -> None:
        """Run a round.

        Raises:
            Violation: a promise was broken.
        """
        self.tally.kinds[plan.kind] += 1
        acted = self._interposed.acted if self._interposed else 0
        with ExitStack() as stack:
            data, small_disk = self.data, None
            if plan.kind == "full" and disk.can_mount() and plan.rng("disk").random() < 0.5:
                small_disk = stack.enter_context(disk.small_disk(self._folder / "disk", self.data))
                data = small_disk.data
            journal = self._folder / "journal" if plan.kind == "power" else None
            if journal:
                shutil.copytree(self.data, self._folder / "before", dirs_exist_ok=True)
            service = stack.enter_context(self._start(plan, data, journal))
            scenario = scenario_of(plan, service, self._interposed, small_disk)
            self._serve_requests(plan, service, scenario)
            self._end(service, scenario)
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
        usual = plan.rng("checkpoint").choice(CHECKPOINT_SECONDS)
        checkpoint = {"busy": "1", "slow": "0.1"}.get(plan.kind, usual)
        flags += ["--shutdown-timeout", str(GRACE_SECONDS), "--checkpoint-seconds", checkpoint, *FLAGS]
        environment = {}
        if self._interposed:
            self._interposed.disarm()
            # An hour back: sessions were used later than the service believes it is.
            self._interposed.set_wall_clock(-3600 if plan.kind == "clock" and plan.rng("clock").random() < 0.5 else 0)
            environment = self._interposed.environment(data, journal)
        return Service(self._program, flags, environment, self._folder / f"round-{plan.number:03}.log")

    def _serve_requests(self, plan: Plan, service: Service, scenario: Scenario) -> None:
        """Check all sessions after the start, then send requests while the scenario runs."""
        if scenario.ends_at_start:
            scenario.run()
            return
        url, seconds = service.ready()
        self.tally.restarts.append(seconds)
        with Client(url, retries=0, timeout=ANSWER_SECONDS) as client:
            check = Check(client, self.tally, exact=self._exact, evicting=scenario.evicting)
            check.check_all(self.sessions)
        self._owned = [[known for known in owned if known.state] for owned in self._owned]
        if scenario.starts_in_trouble:
            scenario.expected.trouble.set()
        figures = Figures(url, self.tally, scenario.expected)
        threads: list[threading.Thread] = [figures]
        figures.start()
        for i, owned in enumerate(self._owned):
            worker = Worker(f"w{i}", owned, self._pools, plan.rng(f"worker {i}"), self.tally, scenario.expected)
            threads.append(threading.Thread(target=worker.run, args=(url,), daemon=True))
            threads[-1].start()
        try:
            scenario.run()
        finally:
            scenario.expected.over.set()
            for thread in threads:
                thread.join(ANSWER_SECONDS + END_SECONDS)
        if any(thread.is_alive() for thread in threads):
            raise Violation("a request got neither a response nor a connection error")
        if figures.evictions and not service.has_logged("to make space"):
            raise Violation(f"{figures.evictions} sessions were deleted for space without a log line")

    @property
    def sessions(self) -> list[KnownSession]:
        """All sessions of all workers."""
        return [known for owned in self._owned for known in owned]

    def _end(self, service: Service, scenario: Scenario) -> None:
        began = time.monotonic()
        code = service.wait(GRACE_SECONDS + END_SECONDS)
        if scenario.orderly:
            self.tally.stops.append(time.monotonic() - began)
        if self._interposed:
            self._interposed.disarm()
        self.tally.codes[code] += 1
        if code not in scenario.codes:
            raise Violation(f"the service exited with {code}; {service.last_messages()}")
        if complaint := service.complaint():
            raise Violation(f"the service logged an unexpected error: {complaint}")
        self._exact = code == 0 and not scenario.expected.evicting
        if scenario.ends_at_start:
            return
        until = inf if code == 0 else scenario.expected.saved_until
        for known in self.sessions:
            known.note_saved(-inf if scenario.expected.evicting else until)
            self.tally.add("saved", known.durability == "spill" and known.saved is not None)

    def _inspect(self) -> None:
        """Check a copy of the file, so that SQLite's recovery does not change the original.

        Raises:
            Violation: the file is corrupt.
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
                raise Violation(f"dangling rows: {query} returns {number(query)}")
        pages = connection.execute("SELECT nbytes FROM pages").fetchall()
        self._used = (
            sum(page_cost(nbytes) for (nbytes,) in pages) + number("SELECT COUNT(*) FROM sessions") * SESSION_NBYTES
        )

    def finish(self, plan: Plan) -> None:
        """Start again, check and delete all sessions, and stop. The file must be empty then.

        Raises:
            Violation: a promise was broken.
        """
        with self._start(plan, self.data, None) as service:
            url, seconds = service.ready()
            self.tally.restarts.append(seconds)
            with Client(url, retries=0, timeout=ANSWER_SECONDS) as client:
                Check(client, self.tally, exact=self._exact).check_all(self.sessions)
                for info in list(client.sessions()):
                    client.session(info.session).delete()
            service.terminate()
            code = service.wait(GRACE_SECONDS + END_SECONDS)
            self.tally.codes[code] += 1
            if code or service.complaint():
                raise Violation(f"the service exited with {code}; {service.complaint() or service.last_messages()}")
        self._inspect()
        if self._used:
            raise Violation(f"{self._used} bytes are left in the file, though every session was deleted")
