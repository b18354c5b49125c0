"""Attacks on the service. None succeeds, and a successful one would be detected."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from attacks.attack import ATTACKS, Attack, Outcome, Target, target
from attacks.run import MODULES, table, tried
from hadakv_service.testing import running_service

SCRIPT = Path(__file__).parents[2] / "attacks" / "run.py"


def test_no_attack_succeeds() -> None:
    finished = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=600, check=False)

    rows = re.findall(r"^\| .+ \| .+ \| .+ \| (held|SUCCEEDED) \|$", finished.stdout, re.MULTILINE)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert len(rows) >= 45
    assert set(rows) == {"held"}


@pytest.fixture
def attacks() -> dict[str, Attack]:
    for module in MODULES:
        import_module(f"attacks.{module}")
    return ATTACKS


OPEN = ["no token", "wrong token", "another tenant's session: read", "another tenant's session: list"]
PAGES = ["rebinding Host"]


def test_attacks_succeed_on_an_unprotected_service(attacks: dict[str, Attack], tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with running_service("--allowed-hosts", "*") as service:
        unprotected = Target(service, tmp_path / "log")

        succeeded = table(unprotected, {name: attacks[name] for name in OPEN + PAGES})

    assert succeeded == OPEN + PAGES


def test_slow_attack_succeeds_without_a_timeout(attacks: dict[str, Attack]) -> None:
    with target("--header-timeout", "1000", "--max-header-size", "1GiB") as attacked:
        assert not attacks["endless head"](attacked).held


def test_attack_that_changes_a_session_counts_as_success(attacks: dict[str, Attack]) -> None:
    def deletes(attacked: Target) -> Outcome:
        with attacked.caller("alice") as alice:
            alice.delete("/sessions/secret")
        return Outcome("", "no visible effect", held=True)

    with target() as attacked:
        assert tried(attacked, attacks["no token"]).held
        assert not tried(attacked, deletes).held
