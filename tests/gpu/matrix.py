"""The equality matrix: every variant of the kernels on the GPU that is here, beside the reference, bit by bit.

    python tests/gpu/matrix.py [--journal FILE] [--processes N] [--seconds N]

Every call of `metal.calls` is run in every way of `metal.checks`; the suite of tests/kernels follows, without the tests
that would do the same again. Each process compiles the kernels it runs, which takes most of the time. What is found is
in the journal at once; a second run goes on where the first ended. The exit status is 0 only if everything was run, and
is equal.
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
from backends import GPUS_HERE, comparable
from gpu.journal import EQUAL, FAILED, WAITING, Journal, Record, all_equal, table
from hadakv_kernels.gpu import GpuBackend, mlx_kernels
from metal_emulator.executor import Executor, executing
from metal_emulator.launch import Pass
from metal_emulator.proofs import kernel_calls as calls
from metal_emulator.proofs.hard_vectors import hard_vectors
from metal_emulator.proofs.kernel_calls import Call, Encoding
from metal_emulator.proofs.outputs import Output, every_way

ROOT = Path(__file__).resolve().parents[2]
# One for each of the processors that usually stand beside such a GPU, but one.
PROCESSES = 15
# Few, so that all processes end together.
CALLS_AT_ONCE = 4
PROPERTIES = "tests/unit/kernels/backends/test_properties.py::test_any_"
PARITY = "tests/unit/kernels/backends/test_parity.py"
# The longest first: some compile a kernel for each of 300 examples.
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
# `make test` runs all of it on the executor; this is to see that suites are run.
EXECUTOR_SUITES = (("tests/metal/test_launches.py",),)


@dataclass(frozen=True)
class Task:
    """What a process does at a time: calls of one kind, or a part of the suite, which is what pytest is told."""

    kind: str
    calls: tuple[Call, ...] = ()
    suite: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What must be in the journal."""
        return (" ".join(self.suite),) if self.suite else tuple(map(str, self.calls))

    def without(self, done: Set[str]) -> "Task":
        """What of it is left."""
        return replace(self, calls=tuple(call for call in self.calls if str(call) not in done))


def every_task(every: int, suites: Sequence[tuple[str, ...]]) -> Iterator[Task]:
    """All there is, or of the calls each so manieth."""
    for suite in suites:
        yield Task("suites", suite=suite)
    for kind, some in calls.every_kind().items():
        for first in range(0, len(some), CALLS_AT_ONCE * every):
            yield Task(kind, tuple(some[first : first + CALLS_AT_ONCE * every : every]))


@dataclass(frozen=True)
class Worker:
    """One process: takes tasks until there are none.

    Attributes:
        platform: "metal" or "cuda"; None runs Metal's source on the executor.
    """

    journal: Journal
    platform: str | None

    def work(self, tasks: "Queue[Task | None]") -> None:
        """What the process does."""
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
        """Run pytest in this process; its tests go into the journal one by one."""
        only = ["-k", self.platform] if self.platform else []
        with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
            status = pytest.main([*task.suite, *only, "-q", "-p", "no:cacheprovider"], [Recorder(self.journal)])
        good = status == pytest.ExitCode.OK
        why = "" if good else f" {said.getvalue()[-2000:]}"
        self.journal.write(Record(task.kind, *task.names, EQUAL if good else FAILED, why=why))


def compared(kind: str, call: Call, backend: GpuBackend) -> Record:
    """Run a call in every way and compare; whatever goes wrong is this call's."""
    record = Record(kind, str(call))
    try:
        for outputs in every_way(mlx_kernels, call, rows(call, backend), backend.name):
            record.add(outputs)
            overwrite_freed_memory(outputs)
    except Exception as error:
        record.outcome, record.why = FAILED, f" {error!r}"[:2000]
    return record


def overwrite_freed_memory(outputs: Sequence[Output]) -> None:
    """See to it that the next run does not get memory that already holds what it should write."""
    mx.eval([mx.full((output.got.nbytes,), 0xA5, mx.uint8) for output in outputs])


@cache
def comparable_rows(head_dim: int, dtype: str, backend: GpuBackend) -> NDArray[np.intp]:
    """The hard vectors that have the reference's bits on this backend: all of them unless it flushes denormals."""
    return np.flatnonzero(comparable(backend, hard_vectors(head_dim, dtype)))


def rows(call: Call, backend: GpuBackend) -> NDArray[np.intp]:
    """Those for a call; what is decoded has the norms of the float32 ones."""
    if isinstance(call, Encoding):
        return comparable_rows(call.k.head_dim, call.dtype, backend)
    return comparable_rows(call.spec.head_dim, "float32", backend)


@dataclass(frozen=True)
class Recorder:
    """A plugin of pytest that writes into the journal."""

    journal: Journal

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Every test is unfinished at first."""
        for item in session.items:
            self.journal.write(Record("tests", item.nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """How a test ended; what fails before or after it counts too."""
        if report.failed or report.when == "call":
            outcome = EQUAL if report.passed else FAILED
            self.journal.write(Record("tests", report.nodeid, outcome, 1, why=f" {report.longreprtext[-2000:]}"))


def run(tasks: Sequence[Task], worker: Worker, processes: int, seconds: float) -> None:
    """Share the tasks out and wait, so long at most; what is not done then is left."""
    end = time.monotonic() + seconds
    context = mp.get_context("spawn")
    queue: Queue[Task | None] = context.Queue()
    for task in [*tasks, *[None] * processes]:
        queue.put(task)
    queue.cancel_join_thread()  # nobody may be there to take them
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
    """The device and everything that computes: what another run must have in common to go on with a journal."""
    device = GpuBackend(platform).detail if platform else "executor"
    package = Path(hadakv_kernels.__file__).parent
    sources = b"".join(
        path.read_bytes() for path in sorted(package.rglob("*")) if path.suffix in (".py", ".msl", ".npz")
    )
    return {"device": device, "mlx": mx.__version__, "sources": hashlib.sha256(sources).hexdigest()}


def main() -> int:
    """Run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "gpu-matrix.jsonl")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--seconds", type=float, default=1800, help="end after so long, whatever is left")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each Nth variant of a kind")
    parser.add_argument("--executor", action="store_true", help="without a GPU: Metal's source on the CPU, for tests")
    options = parser.parse_args()
    if not options.executor and not GPUS_HERE:
        parser.error("there is no GPU here that MLX can use")
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
