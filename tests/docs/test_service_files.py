"""The systemd unit and the compose file: their settings, times and commands against the service."""

import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.markdown import ROOT
from hadakv_service.settings import Settings

UNIT = ROOT / "service" / "systemd" / "hadakv.service"
COMPOSE = ROOT / "service" / "compose" / "compose.yaml"


def settings_of(variables: dict[str, str]) -> Settings:
    """Return the settings that variables make. Each must be one of the service's, with a valid value."""
    given = {name.removeprefix("HADAKV_").lower(): value for name, value in variables.items()}
    assert all(name.startswith("HADAKV_") for name in variables)
    assert given.keys() <= Settings.model_fields.keys()
    return Settings(**given)  # type: ignore[arg-type]  # texts, as from the environment


@pytest.fixture(scope="module")
def unit() -> dict[str, list[tuple[str, str]]]:
    """Return the keys and values of each section of the unit. A key may occur several times."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for line in UNIT.read_text("utf-8").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.append((key, value))
    return sections


@pytest.fixture(scope="module")
def container() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]["hadakv"]
    return found


def test_unit_runs_a_program_of_the_wheel(unit: dict[str, list[tuple[str, str]]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    program = dict(unit["Service"])["ExecStart"].split()[0]

    assert Path(program).name in project["scripts"]


def test_unit_has_valid_settings_and_waits_for_them(unit: dict[str, list[tuple[str, str]]]) -> None:
    service = dict(unit["Service"])
    variables = dict(value.split("=", 1) for key, value in unit["Service"] if key == "Environment")

    settings = settings_of(variables)

    assert int(service["TimeoutStopSec"]) > settings.shutdown_timeout
    assert settings.data_dir == Path("/var/lib") / service["StateDirectory"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text("utf-8"), flags=re.M)
    copy = tmp_path / UNIT.name
    copy.write_text(text, "utf-8")

    done = subprocess.run(["systemd-analyze", "verify", copy], check=False, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


def test_compose_has_valid_settings_and_waits_for_them(container: dict[str, Any]) -> None:
    settings = settings_of(container["environment"])

    assert int(container["stop_grace_period"].removesuffix("s")) > settings.shutdown_timeout


def test_compose_matches_the_image(container: dict[str, Any]) -> None:
    build = container["build"]
    dockerfile = (COMPOSE.parent / build["context"] / build["dockerfile"]).resolve()
    text = dockerfile.read_text("utf-8")
    (volume,), (port,) = container["volumes"], container["ports"]

    assert dockerfile == ROOT / "Dockerfile.macos"
    assert f"VOLUME {volume.partition(':')[2]}" in text
    assert volume.partition(":")[0] in yaml.safe_load(COMPOSE.read_text("utf-8"))["volumes"]
    # The image binds every address without tokens, so only this machine may reach the port.
    assert port == f"127.0.0.1:{Settings.model_fields['port'].default}:{Settings.model_fields['port'].default}"
    assert f"EXPOSE {port.rpartition(':')[2]}" in text


def test_files_are_installed_for_operators() -> None:
    installed = Path(sysconfig.get_path("data")) / "share" / "hadakv"
    if not installed.exists():
        pytest.skip("installed before these files existed")

    for folder in ("compose", "monitoring", "systemd"):
        names = {path.name for path in (ROOT / "service" / folder).iterdir()}
        assert {path.name for path in (installed / folder).iterdir()} == names
