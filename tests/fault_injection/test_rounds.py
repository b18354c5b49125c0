"""Kills, full disks, failing calls, losses of power, in rounds: nothing acknowledged is lost, and faults are seen."""

import os
import subprocess
import sys
from pathlib import Path

from fault_injection.interpose import AVAILABLE
from fault_injection.mutants import seen
from fault_injection.mutations import MUTATIONS
from fault_injection.schedule import KINDS, possible

RUN = Path(__file__).with_name("run.py")


def test_in_twenty_rounds_nothing_is_lost_or_comes_back(tmp_path: Path) -> None:
    command = [sys.executable, str(RUN), "--rounds", "20", "--seconds", "0.6"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 rounds" in done.stdout
    assert " 0  violations" in done.stdout
    assert not list(tmp_path.iterdir())


def test_every_kind_of_round_is_possible_here_or_needs_linux() -> None:
    assert set(KINDS) - set(possible()) == (set() if AVAILABLE else {"write", "sync", "power", "full", "errors"})


def test_a_fault_in_the_service_is_seen() -> None:
    number, text = seen(MUTATIONS["a manifest lacks its last page"], seed=1, rounds=3)

    assert number
    assert "SessionCorrupt" in text or "rows hang loose" in text, text
