"""The reference parts of docs name exactly what the code has: options, variables, problems, exceptions, commands."""

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import TypeVar

import pytest

from docs.markdown import PAGES, ROOT
from hadakv_cli.app import app
from hadakv_client import errors as client_errors
from hadakv_kernels import Codec
from hadakv_service.errors import ServiceError

Kind = TypeVar("Kind")

# Variables of the client, besides those of the service's options.
CLIENT_VARIABLES = {"HADAKV_URL", "HADAKV_TOKEN", "HADAKV_CA_FILE"}
# Problems of the router, which are no errors of the service's own.
OF_THE_ROUTER = {"not-found", "method-not-allowed"}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def subclasses(base: type[Kind]) -> Iterator[type[Kind]]:
    for each in base.__subclasses__():
        yield each
        yield from subclasses(each)


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Return the options that `--help` lists."""
    command = [sys.executable, "-m", "hadakv_service", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^\s+(?:-\w(?: \S+)?, )?(--[a-z][a-z-]+)", told, re.MULTILINE)) - {"--help", "--version"}


def test_running_lists_exactly_the_options(options: set[str]) -> None:
    assert set(re.findall(r"^\| `(--[a-z-]+)` ", page("running.md"), re.MULTILINE)) == options


def test_variables_are_those_of_options(options: set[str]) -> None:
    known = {f"HADAKV_{option.strip('-').replace('-', '_').upper()}" for option in options} | CLIENT_VARIABLES
    files = [*PAGES, ROOT / "Dockerfile.macos", *(ROOT / "service" / "launchd").iterdir()]

    named = {name for file in files for name in re.findall(r"HADAKV_[A-Z_]*[A-Z]", file.read_text("utf-8"))}

    assert named - known == set()


def test_http_api_lists_exactly_the_problems() -> None:
    listed = set(re.findall(r"^\| \d{3} \| `([a-z-]+)` ", page("http-api.md"), re.MULTILINE))
    slugs = {each.slug for each in subclasses(ServiceError)} | {ServiceError.slug}

    assert listed - OF_THE_ROUTER == slugs - OF_THE_ROUTER
    assert listed >= OF_THE_ROUTER


def test_python_client_lists_exactly_the_exceptions() -> None:
    (tree,) = re.findall(r"```text\n(HadakvError\n.*?)```", page("python-client.md"), re.DOTALL)
    names = set(re.findall(r"^[│├└─ ]*([A-Z]\w+)", tree, re.MULTILINE))

    assert names == {each.__name__ for each in subclasses(client_errors.HadakvError)} | {"HadakvError"}


def test_codec_lists_exactly_the_options() -> None:
    options = page("codec.md").partition("## Options")[2].partition("## Sizes")[0]

    assert set(re.findall(r"^\| `(\w+)` ", options, re.MULTILINE)) == set(Codec().to_mapping()) | {"d512_scale"}


def test_contributing_lists_exactly_the_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ")
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)

    listed = re.findall(r"^\| `make ([\w-]+)` ", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)

    assert sorted(listed) == sorted(targets.split())


def test_command_line_lists_exactly_the_commands() -> None:
    groups = {group.name: group.typer_instance for group in app.registered_groups if group.typer_instance}
    commands = {f"{each.name or 'serve'}" for each in app.registered_commands}
    commands |= {f"{name} {each.name}" for name, group in groups.items() for each in group.registered_commands}

    table = page("command-line.md").partition("## Commands")[2]
    listed = set(re.findall(r"^\| `hadakv ([a-z]+(?: [a-z]+)?)", table, re.MULTILINE))

    # The short forms stand for these.
    assert listed == commands - {"sessions export", "sessions import"}
