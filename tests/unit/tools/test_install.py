"""`tools/install.py`: progress of pip, and its errors."""

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[3] / "tools" / "install.py"
PIP = """
Processing /work
  Installing build dependencies: started
Collecting httpx>=0.28 (from hadakv==0.1.0)
Collecting numpy>=2.0 (from hadakv==0.1.0)
  Downloading numpy-2.4.0.whl (16.4 MB)
Building wheels for collected packages: hadakv
  Building editable for hadakv (pyproject.toml): started
Installing collected packages: numpy, httpx, hadakv
"""


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(installer: ModuleType, *, is_terminal: bool) -> str:
    stream = io.StringIO()
    progress = installer.Progress(stream, is_terminal=is_terminal)
    command = [sys.executable, "-c", f"print({PIP!r})"]
    assert installer.install(command, progress) == (0, f"{PIP}\n")
    progress.finish()
    return stream.getvalue()


def test_log_gets_one_line_per_phase(installer: ModuleType) -> None:
    lines = shown(installer, is_terminal=False).splitlines()

    assert [line.partition(" s  ")[2] for line in lines] == [
        "downloading the build tools",
        "finding and downloading packages",
        "compiling the codec",
        "installing packages",
        "installed",
    ]


def test_terminal_gets_one_line_that_changes(installer: ModuleType) -> None:
    text = shown(installer, is_terminal=True)

    assert text.count("\n") == 1
    assert text.endswith(" s  installed\n")
    for detail in ("Collecting numpy>=2.0", "Downloading numpy-2.4.0.whl (16.4 MB)", "compiling the codec"):
        assert f" s  {detail}\r\033[K" in text


def test_time_goes_on_while_pip_is_silent(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "TICK_SECONDS", 0.01)
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as output:
        ticks = installer.lines_and_ticks(output)
        silent = [next(ticks), next(ticks)]
        os.write(writing, b"end\n")
        os.close(writing)
        rest = [line for line in ticks if line]

    assert silent == [None, None]
    assert rest == ["end\n"]


def test_output_of_a_failed_pip_is_printed(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    done = subprocess.run([sys.executable, FILE, "--no-index", missing], check=False, capture_output=True, text=True)

    assert done.returncode == 1
    assert "missing" in done.stderr
    assert "installed" not in done.stdout
