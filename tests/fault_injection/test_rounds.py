"""Rounds of kills, full disks, failing calls and power losses. They also detect deliberate faults."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fault_injection.faults.interpose import AVAILABLE
from fault_injection.faults.schedule import KINDS, possible
from fault_injection.mutants import seen
from fault_injection.mutations import MUTATIONS

RUN = Path(__file__).with_name("run.py")
# Ways to fail: a broken manifest after a kill, a missing sync at a power loss, no writes at shutdown, a checkpoint that
# counts more as saved than it has written.
USUAL_MUTATIONS = {
    "manifest without its last page",
    "acknowledge without a sync",
    "write nothing at a clean shutdown",
    "take a session that grew during its checkpoint for saved",
}


@pytest.mark.parametrize("rounds", [len(possible()), pytest.param(60, marks=pytest.mark.exhaustive)])
def test_no_acknowledged_data_is_lost_in_any_round(tmp_path: Path, rounds: int) -> None:
    command = [sys.executable, str(RUN), "--rounds", str(rounds), "--seconds", "0.6"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{rounds} rounds" in done.stdout
    assert " 0  violations" in done.stdout
    assert not list(tmp_path.iterdir())


def test_every_kind_of_round_runs_here_or_needs_linux() -> None:
    needs_linux = {"write", "sync", "power", "full", "errors", "clock", "slow"}
    assert set(KINDS) - set(possible()) == (set() if AVAILABLE else needs_linux)


@pytest.mark.parametrize(
    "name", [n if n in USUAL_MUTATIONS else pytest.param(n, marks=pytest.mark.exhaustive) for n in MUTATIONS]
)
def test_deliberate_fault_is_seen(name: str) -> None:
    if not set(MUTATIONS[name].kinds) & set(possible()):
        pytest.skip("no round that shows it can run here")

    number, text = seen(MUTATIONS[name], seed=20260, rounds=60)

    assert number, text
