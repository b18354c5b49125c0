"""Forked services: they behave like services that are started."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from hadakv_service.testing import running_service
from support.services.fork_server import ForkingPopen, OrdinaryPopen
from support.services.program import PROGRAM, run


@pytest.fixture(autouse=True)
def forking() -> None:
    if subprocess.Popen is not ForkingPopen:
        pytest.skip("services are not forked in this run")


@pytest.mark.parametrize("flags", [["--help"], ["--colour", "red"], ["--port", "http"]])
def test_forked_service_exits_like_a_started_one(flags: list[str]) -> None:
    forked = run(*flags, COLUMNS="100")

    with OrdinaryPopen(
        [*PROGRAM, *flags], stdout=-1, stderr=-1, text=True, env=os.environ | {"COLUMNS": "100"}
    ) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert (forked.returncode, forked.stdout, forked.stderr) == (process.returncode, stdout, stderr)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_forked_service_is_a_child_process(number: signal.Signals, code: int) -> None:
    with running_service() as service:
        assert service.process.poll() is None
        service.process.send_signal(number)

        assert service.process.wait(30) == code


def test_forked_service_has_directory_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HADAKV_MEMORY_BUDGET", "5MiB")
    monkeypatch.chdir(tmp_path)

    with running_service("--data-dir", "data", "--disk-budget", "1MiB") as service:
        assert "memory budget 5MiB" in service.startup_line

    assert (tmp_path / "data").is_dir()


def test_unsupported_options_start_a_process(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    done = subprocess.run([*PROGRAM, "--help"], stdout=subprocess.DEVNULL, preexec_fn=marker.touch, check=False)

    assert done.returncode == 0
    assert marker.exists()
