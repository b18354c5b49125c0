"""Equality matrix: every variant of the kernels on this machine's GPU, compared with the reference bit by bit.

    python tests/gpu/matrix.py [--journal FILE] [--processes N] [--seconds N]

Every call of `kernel_calls` runs in every way of `outputs.every_way`. Then the tests in tests/unit/kernels/backends
run, without those that would repeat the same. Each process compiles the kernels that it runs, which takes most of the
time. Results are written to the journal at once, and a second run continues where the first one ended. The exit status
is 0 only if everything has run and is equal.
"""

import argparse
import hashlib
import io
import multiprocessing as mp
import os
import sys
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

import hadakv_kernels
from gpu.journal import EQUAL, FAILED, WAITING, Journal, Record, all_equal, table
from hadakv_kernels.gpu import GpuBackend, mlx_kernels
from metal_emulator.executor import Executor, executing
from metal_emulator.launch import Pass
from metal_emulator.proofs import kernel_calls as calls
from metal_emulator.proofs.hard_vectors import hard_vectors
from metal_emulator.proofs.kernel_calls import Call, Encoding
from metal_emulator.proofs.outputs import Output, every_way
from support.backends import GPUS_HERE, comparable

ROOT = Path(__file__).resolve().parents[2]
# A machine with such a GPU usually has 16 processors. Leave one free.
PROCESSES = 15
# Few calls per task, so that all processes end at about the same time.
CALLS_AT_ONCE = 4
PROPERTIES = "tests/unit/kernels/backends/test_properties.py::test_any_"
PARITY = "tests/unit/kernels/backends/test_parity.py"
# The longest suites come first: some compile a kernel for each of 300 examples.
SUITES: tuple[tuple[str, ...], ...] = (
    (f"{PROPERTIES}finite_input_is_encoded_as_reference",),
    (f"{PROPERTIES}bytes_and_norms_are_decoded_as_reference",),
    ("tests/unit/kernels/backends/test_diagnose.py",),
    (
        PARITY,
        *(f"--deselect={PARITY}::test_{what}" for what in ("encode_equals_reference", "decode_equals_reference")),
    ),
    ("tests/unit/kernels/backends/test_nonfinite.py",),
    ("tests/unit/kernels/backends/test_properties.py", f"--deselect={PROPERTIES}"),
    ("tests/unit/kernels/backends/test_golden.py",),
    ("tests/unit/kernels/backends/test_memory.py", "tests/unit/kernels/backends/test_errors.py"),
)
# `make test` runs all tests on the emulator already. This suite only shows that suites are run.
EXECUTOR_SUITES = (("tests/metal/test_launches.py",),)


@dataclass(frozen=True)
class Task:
    """Unit of work of a process: calls of one kind, or a test suite, given as arguments of pytest."""

    kind: str
    calls: tuple[Call, ...] = ()
    suite: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names that must be in the journal."""
        return (" ".join(self.suite),) if self.suite else tuple(map(str, self.calls))

    def without(self, done: Set[str]) -> "Task":
        """Return the task without the calls that are done."""
        return replace(self, calls=tuple(call for call in self.calls if str(call) not in done))


def every_task(every: int, suites: Sequence[tuple[str, ...]]) -> Iterator[Task]:
    """Yield all tasks, with every `every`-th call of each kind."""
    for suite in suites:
        yield Task("suites", suite=suite)
    for kind, some in calls.every_kind().items():
        for first in range(0, len(some), CALLS_AT_ONCE * every):
            yield Task(kind, tuple(some[first : first + CALLS_AT_ONCE * every : every]))


@dataclass(frozen=True)
class Worker:
    """Process that takes tasks until none is left.

    Attributes:
        journal: where results are written.
        platform: "metal" or "cuda"; None runs the Metal source on the emulator.
    """

    journal: Journal
    platform: str | None

    def work(self, tasks: "Queue[Task | None]") -> None:
        """Run tasks until the queue yields None."""
        with nullcontext() if self.platform else executing(Executor(passes=(Pass(),))) as executor:
            backend = GpuBackend(self.platform or "metal")
            while task := tasks.get():
                if executor:
                    executor.prepare(calls.planned(executor, mlx_kernels, task.calls))
                for call in task.calls:
                    self.journal.write(compared(task.kind, call, backend))
                if task.suite:
                    self.run_suite(task)

    def run_suite(self, task: Task) -> None:
        """Run pytest in this process, and record its tests one by one."""
        only = ["-k", self.platform] if self.platform else []
        with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
            status = pytest.main(
                [*task.suite, *only, "-q", "-m", "", "-p", "no:cacheprovider"], [Recorder(self.journal)]
            )
        good = status == pytest.ExitCode.OK
        why = "" if good else f" {said.getvalue()[-2000:]}"
        self.journal.write(Record(task.kind, *task.names, EQUAL if good else FAILED, why=why))


def compared(kind: str, call: Call, backend: GpuBackend) -> Record:
    """Run a call in every way and compare its outputs. An exception is recorded as a failure of this call."""
    record = Record(kind, str(call))
    try:
        for outputs in every_way(mlx_kernels, call, rows(call, backend), backend.name):
            record.add(outputs)
            overwrite_freed_memory(outputs)
    except Exception as error:
        record.outcome, record.why = FAILED, f" {error!r}"[:2000]
    return record


def overwrite_freed_memory(outputs: Sequence[Output]) -> None:
    """Overwrite freed memory, so that the next run does not get memory with correct results in it."""
    mx.eval([mx.full((output.got.nbytes,), 0xA5, mx.uint8) for output in outputs])


@cache
def comparable_rows(head_dim: int, dtype: str, backend: GpuBackend) -> NDArray[np.intp]:
    """Return the hard vectors that can be compared on this backend: all of them, unless it flushes denormals."""
    return np.flatnonzero(comparable(backend, hard_vectors(head_dim, dtype)))


def rows(call: Call, backend: GpuBackend) -> NDArray[np.intp]:
    """Return the comparable rows of a call. Decoded vectors have the norms of the float32 vectors."""
    if isinstance(call, Encoding):
        return comparable_rows(call.k.head_dim, call.dtype, backend)
    return comparable_rows(call.spec.head_dim, "float32", backend)


@dataclass(frozen=True)
class Recorder:
    """Plugin of pytest that writes to the journal."""

    journal: Journal

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Record every test as unfinished."""
        for item in session.items:
            self.journal.write(Record("tests", item.nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the outcome of a test. Errors in setup and teardown count too."""
        if report.failed or report.when == "call":
            outcome = EQUAL if report.passed else FAILED
            self.journal.write(Record("tests", report.nodeid, outcome, 1, why=f" {report.longreprtext[-2000:]}"))


def run(tasks: Sequence[Task], worker: Worker, processes: int, seconds: float) -> None:
    """Distribute the tasks to processes, and wait for at most `seconds`. Tasks that are not done then are left."""
    end = time.monotonic() + seconds
    context = mp.get_context("spawn")
    queue: Queue[Task | None] = context.Queue()
    for task in [*tasks, *[None] * processes]:
        queue.put(task)
    queue.cancel_join_thread()  # do not wait for tasks that no process takes
    crowd = [context.Process(target=worker.work, args=(queue,)) for _ in range(min(processes, len(tasks)))]
    for process in crowd:
        process.start()
    while (alive := [p for p in crowd if p.is_alive()]) and (left := end - time.monotonic()) > 0:
        wait([process.sentinel for process in alive], min(left, 20))
        found = worker.journal.records().values()
        done = sum(record.outcome != WAITING for record in found)
        print(f"{done} of {len(found)} after {time.monotonic() - end + seconds:.0f} s", flush=True)  # noqa: T201 - progress
    for process in crowd:
        process.terminate()
        process.join()


def about(platform: str | None) -> dict[str, str]:
    """Return the device, the version of MLX and a hash of the sources. Only the same run continues a journal."""
    device = GpuBackend(platform).detail if platform else "executor"
    package = Path(hadakv_kernels.__file__).parent
    sources = b"".join(
        path.read_bytes() for path in sorted(package.rglob("*")) if path.suffix in (".py", ".msl", ".npz")
    )
    return {"device": device, "mlx": mx.__version__, "sources": hashlib.sha256(sources).hexdigest()}


def main() -> int:
    """Run the matrix and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "gpu-matrix.jsonl")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--seconds", type=float, default=1800, help="time limit in seconds")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="run only every Nth variant of a kind")
    parser.add_argument("--executor", action="store_true", help="run the Metal source on the CPU emulator, for tests")
    options = parser.parse_args()
    if not options.executor and not GPUS_HERE:
        parser.error("this machine has no GPU that MLX supports")
    platform = None if options.executor else GPUS_HERE[0]
    journal = Journal(options.journal.resolve(), about(platform))
    journal.begin()
    os.chdir(ROOT)
    done = {name for name, record in journal.records().items() if record.outcome == EQUAL}
    suites = SUITES if platform else EXECUTOR_SUITES
    left = [task.without(done) for task in every_task(options.every, suites) if not done.issuperset(task.names)]
    for task in left:
        for name in task.names:
            journal.write(Record(task.kind, name))
    run(left, Worker(journal, platform), options.processes, options.seconds)
    records = journal.records()
    print(*journal.about.items(), table(records), sep="\n")  # noqa: T201 - the result
    return not all_equal(records)


if __name__ == "__main__":
    sys.exit(main())
