"""Many clients on one service for a long time, where memory is for a tenth of what they store.

Every client appends, repeats, misplaces, reads, truncates, forks and deletes, as in the fault tests, and compares
whatever comes back with the reference.
"""

import argparse
import random
import sys
import tempfile
import threading
import time

from pydantic import ByteSize, TypeAdapter

from fault_injection.check import Check
from fault_injection.model import Known
from fault_injection.pool import SHAPES, Pool
from fault_injection.report import Tally, Violation
from fault_injection.workload import Weather, Worker
from hadakv_client import Client
from hadakv_service.testing import RunningService, running_service
from soak.watch import Watch, table

SETTLED_SECONDS = 60.0


def main() -> None:
    """The command line; exits with 1 if anything was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: ten minutes)")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory-budget", default="2MiB", help="of the service; its data should be ten times that")
    options = parser.parse_args()
    tally, text = soak(options.seconds, options.clients, options.seed, options.memory_budget)
    print(text)
    if tally.violations:
        print("", *tally.violations[:20], sep="\n")
        sys.exit(1)


def soak(seconds: float, clients: int, seed: int, memory_budget: str) -> tuple[Tally, str]:
    """Let clients loose on a service, read everything back at the end; what was counted, and the tables."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--data-dir", folder, "--disk-budget", "1GiB", "--memory-budget", memory_budget, "--durability", "ack")
        with running_service(*flags) as service:
            watch = Watch(service.url, service.process.pid)
            watch.start()
            sessions = _let_loose(service, tally, seconds, clients, seed)
            watch.end()
            _check(service, tally, sessions)
        tally.kinds["soak"] += 1
        code = service.process.returncode
        tally.codes[code] += 1
        if code:
            tally.violation(f"the service ended with {code}")
    budget = TypeAdapter(ByteSize).validate_python(memory_budget)
    told = tally.table(seed, seconds, {"soak": f"soak of {clients} clients"})
    return tally, f"{told}\n\n{table(watch.samples, budget, min(SETTLED_SECONDS, seconds / 2))}"


def _let_loose(service: RunningService, tally: Tally, seconds: float, clients: int, seed: int) -> list[Known]:
    # What is not acknowledged, or is for memory only, may be evicted.
    weather = Weather(evicting=True)
    pools = [Pool(shape, seed) for shape in SHAPES]
    owned: list[list[Known]] = [[] for _ in range(clients)]
    workers = [
        Worker(f"client-{i}", sessions, pools, random.Random(f"{seed} {i}"), tally, weather)
        for i, sessions in enumerate(owned)
    ]
    threads = [threading.Thread(target=worker.run, args=(service.url,)) for worker in workers]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until and not tally.violations and service.process.poll() is None:
        time.sleep(0.1)
    weather.over.set()
    for thread in threads:
        thread.join(120)
    return [known for sessions in owned for known in sessions]


def _check(service: RunningService, tally: Tally, sessions: list[Known]) -> None:
    """Read everything back."""
    try:
        with Client(service.url, timeout=60.0) as client:
            Check(client, tally, exact=True, restarted=False).everything(sessions)
    except Violation as error:
        tally.violation(str(error))
