"""Soak test: many clients use one service for a long time. Its memory holds a tenth of their data.

Each client sends the workload of the fault injection tests and compares every response with the reference.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass

import numpy as np
from pydantic import ByteSize, TypeAdapter

from fault_injection.report import Tally, Violation
from fault_injection.sessions.check import Check
from fault_injection.sessions.model import KnownSession
from fault_injection.sessions.pool import SHAPES, Pool
from fault_injection.sessions.workload import Expectations, Worker
from hadakv_client import Client
from hadakv_service.testing import RunningService, running_service
from soak.compare import compare
from soak.watch import Watch, table

SETTLED_SECONDS = 60.0


def main() -> None:
    """Run the command line; exit with 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="duration (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="number of clients (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: %(default)s)")
    parser.add_argument("--memory-budget", default="2MiB", help="memory budget of the service (default: %(default)s)")
    parser.add_argument("--checkpoint-seconds", default="1", help="of the service (default: %(default)s)")
    parser.add_argument(
        "--compare", action="store_true", help="instead, compare appends without and with checkpoints, in turn"
    )
    options = parser.parse_args()
    if options.compare:
        print(compare(options.seconds, options.checkpoint_seconds))
        return
    tally, text = soak(
        Load(options.seconds, options.clients, options.seed, options.memory_budget, options.checkpoint_seconds)
    )
    print(text)
    if tally.violations:
        print("", *tally.violations[:20], sep="\n")
        sys.exit(1)


@dataclass(frozen=True)
class Load:
    """What a soak does.

    Attributes:
        seconds: duration.
        clients: number of clients.
        seed: random seed.
        memory_budget: memory budget of the service.
        checkpoint_seconds: checkpoint interval of the service.
    """

    seconds: float
    clients: int
    seed: int
    memory_budget: str
    checkpoint_seconds: str


def soak(load: Load) -> tuple[Tally, str]:
    """Run clients on a service, then read every session; return the counters and the printed tables."""
    seconds, clients, seed, memory_budget = load.seconds, load.clients, load.seed, load.memory_budget
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--data-dir", folder, "--disk-budget", "1GiB", "--memory-budget", memory_budget, "--durability", "ack"]
        flags += ["--checkpoint-seconds", load.checkpoint_seconds]
        with running_service(*flags) as service:
            watch = Watch(service.url, service.process.pid)
            watch.start()
            sessions = _run_clients(service, tally, seconds, clients, seed)
            watch.end()
            _check(service, tally, sessions)
        tally.kinds["soak"] += 1
        code = service.process.returncode
        tally.codes[code] += 1
        if code:
            tally.violation(f"the service exited with {code}")
    budget = TypeAdapter(ByteSize).validate_python(memory_budget)
    counts = tally.table(seed, seconds, {"soak": f"soak of {clients} clients"})
    median, p99 = np.percentile(tally.append_seconds, (50, 99)) * 1000
    counts += f"\n{median:>14.2f}  ms until an append was acknowledged, median; {p99:.2f} for 99 of 100"
    return tally, f"{counts}\n\n{table(watch.samples, budget, min(SETTLED_SECONDS, seconds / 2))}"


def _run_clients(service: RunningService, tally: Tally, seconds: float, clients: int, seed: int) -> list[KnownSession]:
    # Sessions without `ack` may be evicted.
    expected = Expectations(evicting=True)
    pools = [Pool(shape, seed) for shape in SHAPES]
    owned: list[list[KnownSession]] = [[] for _ in range(clients)]
    workers = [
        Worker(f"client-{i}", sessions, pools, random.Random(f"{seed} {i}"), tally, expected)
        for i, sessions in enumerate(owned)
    ]
    threads = [threading.Thread(target=worker.run, args=(service.url,)) for worker in workers]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until and not tally.violations and service.process.poll() is None:
        time.sleep(0.1)
    expected.over.set()
    for thread in threads:
        thread.join(120)
    return [known for sessions in owned for known in sessions]


def _check(service: RunningService, tally: Tally, sessions: list[KnownSession]) -> None:
    """Read and compare every session."""
    try:
        with Client(service.url, timeout=60.0) as client:
            Check(client, tally, exact=True, restarted=False).check_all(sessions)
    except Violation as error:
        tally.violation(str(error))
