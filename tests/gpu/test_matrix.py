"""The equality matrix, on the emulator: it runs, and reports what it has compared and what is left."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpu import matrix
from gpu.journal import DIFFERENT, EQUAL, FAILED, WAITING, Journal, Record, all_equal, table
from hadakv_kernels import Codec
from metal_emulator.proofs import kernel_calls as calls
from metal_emulator.proofs.kernel_calls import Encoding
from metal_emulator.proofs.outputs import Output


def run(journal: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, matrix.__file__, "--executor", "--processes", "2", "--journal", str(journal), *options]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_matrix_runs_variants_and_resumes_from_the_journal(tmp_path: Path) -> None:
    first = run(tmp_path / "journal", "--every", "400")
    second = run(tmp_path / "journal", "--every", "400", "--seconds", "0")

    assert first.returncode == 0, first.stderr
    records = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()[1:]]
    ran = {record["name"]: record for record in records if record["outcome"] == EQUAL}
    expected = {str(call) for some in calls.every_kind().values() for call in some[::400]}
    assert expected <= ran.keys()
    assert all(ran[name]["runs"] == 3 and sum(ran[name]["compared"].values()) > 0 for name in expected)
    assert "tests/metal/test_launches.py" in ran
    assert second.returncode == 0
    assert first.stdout.splitlines()[-1].split()[:3] == ["all", str(len(ran)), str(len(ran))]
    assert second.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]


def test_unfinished_variants_are_named_and_fail(tmp_path: Path) -> None:
    ended = run(tmp_path / "journal", "--every", "1000", "--seconds", "0")

    assert ended.returncode == 1
    assert f"{WAITING}: {calls.single_encodings()[0]}:" in ended.stdout.splitlines()


def test_tasks_cover_every_call() -> None:
    tasks = list(matrix.every_task(1, matrix.SUITES))

    names = [name for task in tasks for name in task.names]
    every = [str(call) for some in calls.every_kind().values() for call in some]
    assert names == [" ".join(suite) for suite in matrix.SUITES] + every
    assert len(set(names)) == len(names)
    assert len(every) == 3357


@pytest.mark.parametrize("suite", matrix.SUITES, ids=" ".join)
def test_suites_name_existing_tests(suite: tuple[str, ...]) -> None:
    for argument in suite:
        path, _, start = argument.removeprefix("--deselect=").partition("::")
        assert f"def {start or 'test_'}" in (matrix.ROOT / path).read_text()


def output(name: str, got: list[float], expected: list[float]) -> Output:
    call = Encoding("float32", Codec().at(64))
    return Output(call, name, np.array(got, np.float32), np.array(expected, np.float32))


def test_differing_bits_are_counted_and_named() -> None:
    record = Record("one stream", "name")

    record.add([output("k_packed", [1, 2], [1, 2]), output("k_norms", [0.0, 1], [-0.0, 1]), output("rms", [1], [1, 1])])

    assert record.outcome == DIFFERENT
    assert record.compared == {"packed": 2, "norms": 2, "values": 2}
    assert record.different == {"packed": 0, "norms": 1, "values": 2}
    assert "1 of 2 k_norms in run 1" in record.why


def test_all_equal_requires_every_record_equal() -> None:
    good = Record("kind", "good", EQUAL)

    assert all_equal({"good": good})
    assert not all_equal({})
    for outcome in (DIFFERENT, FAILED, WAITING):
        bad = Record("kind", "bad", outcome, why=" reason")
        assert not all_equal({"good": good, "bad": bad})
        assert table({"good": good, "bad": bad}).splitlines()[-1] == f"{outcome}: bad: reason"


def test_journal_restarts_for_other_sources_or_device(tmp_path: Path) -> None:
    for about in ({"device": "one"}, {"device": "one"}, {"device": "two"}):
        journal = Journal(tmp_path / "journal", about)
        journal.begin()
        journal.write(Record("kind", f"name {len(journal.records())}"))
    assert list(journal.records()) == ["name 0"]
