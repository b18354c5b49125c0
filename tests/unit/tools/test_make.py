"""The Makefile, with a stub in place of the environment's Python."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Prints its arguments. As the service, it runs until Ctrl-C, like the real one.
STUB = """#!/bin/sh
echo "python $*"
test "$2" = hadakv_service || exit 0
trap 'exit 130' INT
echo $$
while :; do sleep 0.01; done
"""
PROGRAMS = {
    "demo": "clients/demo",
    "attacks": "tests/attacks/run.py",
    "mutants": "tests/metal_emulator/mutants/run.py",
    "faults": "tests/fault_injection/run.py",
    "faults-mutants": "tests/fault_injection/mutants.py",
    "fuzz": "tests/fuzzing/run.py",
    "gpu-matrix": "tests/gpu/matrix.py",
    "load": "tests/load/run.py",
    "soak": "tests/soak/run.py",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the Makefile and an environment for the service."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").write_text(STUB, "utf-8")
    (binaries / "python").chmod(0o755)
    for age, stamp in enumerate(("server-editable", "created")):
        (tmp_path / ".venv" / stamp).touch()
        os.utime(tmp_path / ".venv" / stamp, (1e9 - age, 1e9 - age))
    return tmp_path


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    # make sets some variables for makes that it starts, and `make test` starts these tests.
    mine = {name for name in os.environ if name in ("CI", "WHEEL", "MFLAGS") or name.startswith("MAKE")}
    environment = {name: value for name, value in os.environ.items() if name not in mine}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(["make", *arguments], cwd=folder, env=environment, text=True, process_group=0, **output)


def make(folder: Path, *arguments: str) -> str:
    """Return what `make` prints. It must succeed."""
    process = start(folder, *arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def targets(help_: str) -> list[str]:
    return re.findall(r"^  ([a-z-]+)  +\S", help_, re.M)


def test_bare_make_prints_one_line_for_each_target(folder: Path) -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    phony = re.sub(r"\\\n", "", text).partition(".PHONY: ")[2].partition("\n")[0].split()

    printed = make(folder)

    assert sorted(targets(printed)) == sorted(phony)
    assert max(map(len, printed.splitlines())) < 80
    assert len(re.findall(r"^\S.*$", printed, re.M)) == 5  # how to call it, and four groups


@pytest.mark.parametrize("target", ["demo", "serve"])
def test_demo_and_serve_install_no_tools_of_development(folder: Path, target: str) -> None:
    shutil.rmtree(folder / ".venv")

    commands = make(folder, "--dry-run", target)

    assert "install.py --editable '.[server,demo]'" in commands
    assert "dev" not in commands.replace("dev-*", "").replace("/dev/", "")


def test_demo_uses_an_environment_for_development(folder: Path) -> None:
    (folder / ".venv" / "server-editable").rename(folder / ".venv" / "dev-editable")

    assert make(folder, "demo", "ARGS=--help") == "python clients/demo --help\n"


@pytest.mark.parametrize(("target", "program"), PROGRAMS.items())
def test_every_program_gets_the_arguments(folder: Path, target: str, program: str) -> None:
    assert f"python {program} --help" in make(folder, "--dry-run", target, "ARGS=--help")


@pytest.mark.parametrize(
    "program",
    [
        "clients/demo",
        "tests/attacks/run.py",
        *(pytest.param(program, marks=pytest.mark.exhaustive) for program in [*PROGRAMS.values()][2:]),
    ],
)
def test_every_program_prints_help(program: str) -> None:
    command = [ROOT / ".venv/bin/python", program, "--help"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_serve_ended_by_ctrl_c_is_no_error(folder: Path) -> None:
    with start(folder, "serve") as process:
        assert process.stdout is not None
        first, _ = process.stdout.readline(), process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()

    assert first == "python -m hadakv_service\n"
    assert rest == ""
    # make ends itself with the signal that it got, too.
    assert process.returncode in (0, -signal.SIGINT)


def test_serve_interrupted_alone_ends_with_status_0(folder: Path) -> None:
    with start(folder, "serve") as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(int(process.stdout.readline()), signal.SIGINT)
        rest = process.stdout.read()

    assert (process.returncode, rest) == (0, "")


def test_other_errors_of_serve_stay_errors(folder: Path) -> None:
    (folder / ".venv/bin/python").write_text("#!/bin/sh\nexit 1\n", "utf-8")

    with start(folder, "serve") as process:
        output, _ = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "Error 1" in output
