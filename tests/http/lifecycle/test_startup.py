"""Starting the service as a program: what it says, and what it refuses."""

import plistlib
import re
import socket
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from pydantic_settings import CliApp

from hadakv_kernels.backend import GPUS
from hadakv_service.settings import Settings, is_loopback, users_data_directory
from hadakv_service.testing import running_service
from support.backends import GPUS_HERE
from support.contract import Caller
from support.program import run

AGENT = Path(__file__).parents[3] / "service" / "launchd" / "dev.hadakv.service.plist"


def test_help_tells_every_setting_and_its_default() -> None:
    finished = run("--help", COLUMNS="1000")

    told = set(re.findall(r"--[a-z][a-z-]+", finished.stdout))
    assert (finished.returncode, finished.stderr) == (0, "")
    assert {f"--{name.replace('_', '-')}" for name in Settings.model_fields} <= told
    assert "127.0.0.1" in finished.stdout
    assert "8765" in finished.stdout
    assert f"(default: {users_data_directory()})" in finished.stdout
    assert "factory" not in finished.stdout


def test_launchd_waits_for_longer_than_the_service_takes_to_end() -> None:
    agent = plistlib.loads(AGENT.read_bytes())

    assert agent["ExitTimeOut"] > Settings.model_fields["grace"].default


def test_the_startup_line_tells_version_backend_address_and_budget() -> None:
    with running_service("--memory-budget", "3GiB") as service:
        answer = httpx.get(f"{service.url}/readyz")
        ready = answer.json()

    expected = rf"hadakv \S+: \w+ backend \(.+\), {re.escape(service.url)}, memory budget 3\.0GiB, nothing on disk"
    assert re.fullmatch(expected, service.startup_line)
    assert answer.status_code == 200
    assert ready["budget_nbytes"] == 3 << 30
    assert service.startup_line.startswith(f"hadakv {ready['version']}: {ready['backend']} backend ({ready['detail']})")


def test_settings_come_from_flags_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HADAKV_MEMORY_BUDGET", "5MiB")
    monkeypatch.setenv("HADAKV_TTL_SECONDS", "77")
    monkeypatch.setenv("HADAKV_MAX_BODY", "100")

    with running_service("--memory-budget", "6MiB") as service, Caller(service.url) as caller:
        budget = caller.get("/readyz").body["budget_nbytes"]
        ttl = caller.put("/sessions/a", {}).body["ttl_seconds"]
        refused = caller.send("POST", "/encode", bytes(101))

    assert (budget, ttl) == (6 << 20, 77)
    assert refused.problem(413, "body-too-large")["limit"] == 100


BAD_VALUES = {
    "a port beyond all ports": (("--port", "65536"), "port"),
    "a budget that is no size": (("--memory-budget", "much"), "memory_budget"),
    "a negative budget": (("--memory-budget", "-1"), "memory_budget"),
    "a body of no size": (("--max-body", "-5"), "max_body"),
    "a queue of nobody": (("--queue", "0"), "queue"),
    "no threads": (("--threads", "0"), "threads"),
    "a ttl of 0": (("--ttl-seconds", "0"), "ttl_seconds"),
    "an endless ttl": (("--ttl-seconds", "inf"), "ttl_seconds"),
    "no requests": (("--max-requests", "0"), "max_requests"),
    "no connections": (("--max-connections", "0"), "max_connections"),
    "a head of nothing": (("--max-header-size", "100"), "max_header_size"),
    "no time for a head": (("--header-timeout", "0"), "header_timeout"),
    "endless time for a body": (("--stall-timeout", "inf"), "stall_timeout"),
    "no pace": (("--min-transfer-rate", "0"), "min_transfer_rate"),
    "a socket for nobody in particular": (("--uds-mode", "rw"), "uds_mode"),
    "a host with a port": (("--allowed-hosts", "a,b:80"), "allowed_hosts"),
    "an origin that is a name": (("--allowed-origins", "example.org"), "allowed_origins"),
    "an origin with a path": (("--allowed-origins", "https://example.org/"), "allowed_origins"),
    "any origin": (("--allowed-origins", "*"), "allowed_origins"),
    "an unknown backend": (("--backend", "abacus"), "backend"),
    "an unknown log level": (("--log-level", "loud"), "log_level"),
    "an unknown form of the log": (("--log-format", "xml"), "log_format"),
}


@pytest.mark.parametrize(("flags", "field"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_no_setting_may_have(flags: tuple[str, ...], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        CliApp.run(Settings, cli_args=list(flags))

    assert [error["loc"] for error in refused.value.errors()] == [(field,)]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", ""])
def test_no_address_beyond_loopback_is_bound_without_tokens(host: str) -> None:
    with pytest.raises(ValidationError, match="refusing to bind"):
        CliApp.run(Settings, cli_args=["--host", host])

    assert CliApp.run(Settings, cli_args=["--host", host, "--insecure"]).host == host
    assert CliApp.run(Settings, cli_args=["--host", host, "--token-file", "tokens"]).host == host


def test_settings_that_do_not_go_together_are_refused() -> None:
    for flags, message in (
        (["--tls-key", "key.pem"], "need --tls-cert"),
        (["--tls-key-password-file", "password"], "need --tls-cert"),
        (["--max-body", "2MiB", "--max-receiving", "1MiB"], "room for a body of --max-body"),
    ):
        with pytest.raises(ValidationError, match=message):
            CliApp.run(Settings, cli_args=flags)


def test_lists_are_separated_by_commas_in_flags_and_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HADAKV_ALLOWED_HOSTS", "one.example, Two.example")

    settings = CliApp.run(
        Settings, cli_args=["--allowed-origins", "http://a:1,http://b", "--allowed-origins", "http://c"]
    )

    assert settings.allowed_hosts == ("one.example", "two.example")
    assert settings.allowed_origins == ("http://a:1", "http://b", "http://c")


BAD_STARTS = {
    "a port that is no number": (("--port", "http"), r"hadakv: port: .*integer.*"),
    "an address beyond loopback": (("--host", "0.0.0.0"), r"hadakv: .*refusing to bind 0\.0\.0\.0 without a token.*"),
    "a token file that is not there": (("--token-file", "/nowhere/tokens"), r"hadakv: .*/nowhere/tokens.*"),
    **{
        f"{gpu} where there is none": (("--backend", gpu), f"hadakv: the {gpu} backend needs a GPU .*")
        for gpu in GPUS
        if gpu not in GPUS_HERE
    },
}


@pytest.mark.parametrize(("flags", "message"), BAD_STARTS.values(), ids=BAD_STARTS)
def test_the_program_says_in_one_line_why_it_does_not_start_with(flags: tuple[str, ...], message: str) -> None:
    finished = run("--port", "0", *flags)

    assert (finished.returncode, finished.stdout) == (1, "")
    assert re.fullmatch(message + "\n", finished.stderr)


def test_a_flag_there_is_not_is_refused_with_its_name() -> None:
    finished = run("--colour", "red")

    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.splitlines()[-1].endswith("unrecognized arguments: --colour red")


def test_a_bad_environment_is_refused_in_one_line() -> None:
    finished = run(HADAKV_QUEUE="none")

    assert finished.returncode == 1
    assert re.fullmatch(r"hadakv: queue: .+\n", finished.stderr)


def test_insecure_lets_the_service_bind_beyond_loopback() -> None:
    with running_service("--host", "0.0.0.0", "--insecure") as service:
        status = httpx.get(service.url.replace("0.0.0.0", "127.0.0.1") + "/healthz").status_code

    assert status == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_only_loopback_is_taken_for_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        finished = run("--port", str(port))

    assert finished.returncode not in (0, None)
    assert str(port) in finished.stderr
    assert "Traceback" not in finished.stderr
