"""Startup of the service as a program: its output, and the settings that it rejects."""

import plistlib
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args

import httpx
import pytest
from pydantic import ValidationError

from hadakv_client import Client, Retries
from hadakv_kernels.backend import GPUS, host_memory_nbytes
from hadakv_service.settings import Group, Settings, is_loopback, user_data_directory
from hadakv_service.startup.arguments import group_of, parse_settings
from hadakv_service.startup.warnings import setting_warnings
from hadakv_service.testing import running_service
from support.backends import GPUS_HERE
from support.contract import Caller
from support.services.program import run

AGENT = Path(__file__).parents[3] / "service" / "launchd" / "dev.hadakv.service.plist"


def test_help_lists_every_setting_and_its_default() -> None:
    finished = run("--help", COLUMNS="1000")

    assert finished.stdout.startswith("usage: python -m hadakv_service ")
    listed = set(re.findall(r"--[a-z][a-z-]+", finished.stdout))
    assert (finished.returncode, finished.stderr) == (0, "")
    assert {f"--{name.replace('_', '-')}" for name in Settings.model_fields} <= listed
    assert "127.0.0.1" in finished.stdout
    assert "8765" in finished.stdout
    assert f"(default: {user_data_directory()})" in finished.stdout
    assert "(default: 1GiB)" in finished.stdout
    assert re.findall(r"^(\w.*):$", finished.stdout, re.MULTILINE) == [*get_args(Group), "Help", "examples"]
    assert not re.search(r"factory|null|ByteSize|\(\)", finished.stdout)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_has_a_group_and_a_help_text(name: str) -> None:
    field = Settings.model_fields[name]

    assert group_of(field) in get_args(Group)
    assert field.description


def test_launchd_waits_longer_than_the_shutdown_timeout() -> None:
    agent = plistlib.loads(AGENT.read_bytes())

    assert agent["ExitTimeOut"] > Settings.model_fields["shutdown_timeout"].default


def test_startup_line_has_version_backend_address_and_budget() -> None:
    with running_service("--memory-budget", "3GiB") as service:
        response = httpx.get(f"{service.url}/readyz")
        ready = response.json()

    expected = rf"hadakv \S+: \w+ backend \(.+\), {re.escape(service.url)}, memory budget 3GiB, disk disabled"
    assert re.fullmatch(expected, service.startup_line)
    assert response.status_code == 200
    assert ready["budget_nbytes"] == 3 << 30
    assert service.startup_line.startswith(f"hadakv {ready['version']}: {ready['backend']} backend ({ready['detail']})")


def test_flags_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HADAKV_MEMORY_BUDGET", "5MiB")
    monkeypatch.setenv("HADAKV_TTL_SECONDS", "77")
    monkeypatch.setenv("HADAKV_MAX_BODY", "100")

    with running_service("--memory-budget", "6MiB") as service, Caller(service.url) as caller:
        budget = caller.get("/readyz").body["budget_nbytes"]
        ttl = caller.put("/sessions/a", {}).body["ttl_seconds"]
        response = caller.send("POST", "/encode", bytes(101))

    assert (budget, ttl) == (6 << 20, 77)
    assert response.problem(413, "body-too-large")["limit"] == 100


BAD_VALUES = {
    "port too large": (("--port", "65536"), "port"),
    "budget that is not a size": (("--memory-budget", "much"), "memory_budget"),
    "negative budget": (("--memory-budget", "-1"), "memory_budget"),
    "negative body size": (("--max-body", "-5"), "max_body"),
    "an empty queue": (("--max-queued-jobs", "0"), "max_queued_jobs"),
    "no threads": (("--threads", "0"), "threads"),
    "endless shutdown": (("--shutdown-timeout", "inf"), "shutdown_timeout"),
    "no body": (("--max-body", "0"), "max_body"),
    "empty path of the socket": (("--uds", ""), "uds"),
    "empty path of the token file": (("--token-file", ""), "token_file"),
    "zero ttl": (("--ttl-seconds", "0"), "ttl_seconds"),
    "infinite ttl": (("--ttl-seconds", "inf"), "ttl_seconds"),
    "body larger than msgpack allows": (("--max-body", "4294967297"), "max_body"),
    "nothing to send": (("--max-sending", "0"), "max_sending"),
    "no requests": (("--max-requests", "0"), "max_requests"),
    "no connections": (("--max-connections", "0"), "max_connections"),
    "tiny header size": (("--max-header-size", "100"), "max_header_size"),
    "zero header timeout": (("--header-timeout", "0"), "header_timeout"),
    "infinite stall timeout": (("--stall-timeout", "inf"), "stall_timeout"),
    "zero transfer rate": (("--min-transfer-rate", "0"), "min_transfer_rate"),
    "socket mode that is not octal": (("--uds-mode", "rw"), "uds_mode"),
    "host with a port": (("--allowed-hosts", "a,b:80"), "allowed_hosts"),
    "origin without a scheme": (("--allowed-origins", "example.org"), "allowed_origins"),
    "origin with a path": (("--allowed-origins", "https://example.org/"), "allowed_origins"),
    "wildcard origin": (("--allowed-origins", "*"), "allowed_origins"),
    "unknown backend": (("--backend", "abacus"), "backend"),
    "unknown log level": (("--log-level", "loud"), "log_level"),
    "unknown log format": (("--log-format", "xml"), "log_format"),
}


@pytest.mark.parametrize(("flags", "field"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_invalid_value_is_rejected(flags: tuple[str, ...], field: str) -> None:
    with pytest.raises(ValidationError) as rejected:
        parse_settings(flags)

    assert [error["loc"] for error in rejected.value.errors()] == [(field,)]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", ""])
def test_bind_beyond_loopback_needs_tokens_or_insecure(host: str) -> None:
    with pytest.raises(ValidationError, match="refusing to bind"):
        parse_settings(["--host", host])

    assert parse_settings(["--host", host, "--insecure"]).host == host
    assert parse_settings(["--host", host, "--token-file", "tokens"]).host == host


def test_conflicting_settings_are_rejected() -> None:
    for flags, message in (
        (["--tls-key", "key.pem"], "need --tls-cert"),
        (["--tls-key-password-file", "password"], "need --tls-cert"),
        (["--max-body", "2MiB", "--max-body-memory", "1MiB"], "at least --max-body"),
    ):
        with pytest.raises(ValidationError, match=message):
            parse_settings(flags)


def test_body_of_4_gib_is_accepted() -> None:
    assert parse_settings(["--max-body", "4GiB"]).max_body == 4 << 30


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HADAKV_ALLOWED_HOSTS", "one.example, Two.example")

    settings = parse_settings(["--allowed-origins", "http://a:1,http://b", "--allowed-origins", "http://c"])

    assert settings.allowed_hosts == ("one.example", "two.example")
    assert settings.allowed_origins == ("http://a:1", "http://b", "http://c")


BAD_SETTINGS = {
    "port that is not a number": (("--port", "http"), "--port: must be a whole number, not 'http'"),
    "port too large": (("--port", "65536"), "--port: must be at most 65535, not '65536'"),
    "address beyond loopback": (("--host", "0.0.0.0"), r"refusing to bind 0\.0\.0\.0 without tokens.*"),
    "value that is not a size": (
        ("--memory-budget", "much"),
        "--memory-budget: must be a size such as 512MiB or 4GiB, not 'much'",
    ),
    "body larger than msgpack allows": (
        ("--max-body", "5GiB"),
        "--max-body: must be at most 4GiB, the limit of msgpack, not 5GiB",
    ),
    "tiny memory budget": (("--memory-budget", "1000KiB"), "--memory-budget: must be at least 1MiB, not 1000KiB"),
    "tiny header size": (("--max-header-size", "100"), "--max-header-size: must be at least 1KiB, not '100'"),
    "empty path": (("--data-dir", ""), "--data-dir: must be a path, not ''"),
    "unknown choice": (("--log-level", "trace"), "--log-level: must be one of 'debug', .* or 'error', not 'trace'"),
    "seconds that are not a number": (("--ttl-seconds", "1h"), "--ttl-seconds: must be a number, not '1h'"),
    "mode that is not octal": (("--uds-mode", "rw"), "--uds-mode: must be an octal number such as 600, not 'rw'"),
    "misspelt flag": (("--memory-bugdet", "8GiB"), ".*--memory-bugdet 8GiB; did you mean --memory-budget?.*"),
    "abbreviated flag": (("--memory", "8GiB"), "unrecognized arguments: --memory 8GiB.*"),
    "missing value": (("--port",), "argument --port: expected one argument; see .* --help"),
}


@pytest.mark.parametrize(("flags", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_invalid_setting_names_the_flag_and_the_value(flags: tuple[str, ...], message: str) -> None:
    finished = run(*flags)

    assert (finished.returncode, finished.stdout) == (2, "")
    assert re.fullmatch(f"hadakv: {message}\n", finished.stderr), finished.stderr


BAD_STARTS = {
    "missing token file": (
        ("--token-file", "/nowhere/tokens"),
        r"hadakv: cannot read /nowhere/tokens: No such file or directory",
    ),
    "unknown host name": (
        ("--host", "no-host.invalid", "--insecure"),
        r"hadakv: cannot listen on no-host\.invalid: unknown host name\. Choose another --host\.",
    ),
    "address of another machine": (
        ("--host", "192.0.2.1", "--insecure"),
        r"hadakv: cannot listen on 192\.0\.2\.1:0: this machine does not have the address\. Choose another --host\.",
    ),
    **{
        f"{gpu} without a GPU": (("--backend", gpu), f"hadakv: the {gpu} backend needs a GPU .*")
        for gpu in GPUS
        if gpu not in GPUS_HERE
    },
}


@pytest.mark.parametrize(("flags", "message"), BAD_STARTS.values(), ids=BAD_STARTS)
def test_failed_start_prints_one_line(flags: tuple[str, ...], message: str) -> None:
    finished = run("--port", "0", *flags)

    assert (finished.returncode, finished.stdout) == (1, "")
    assert re.fullmatch(message + "\n", finished.stderr)


def test_service_starts_with_closed_standard_streams(tmp_path: Path) -> None:
    # With descriptors 0 to 2 closed, its files and sockets would get them, and its output.
    command = f'exec "$0" -m hadakv_service --uds {tmp_path}/socket --data-dir {tmp_path}/data <&- >&- 2>&-'

    with subprocess.Popen(["/bin/sh", "-c", command, sys.executable]) as process:
        try:
            with Client(f"unix:{tmp_path}/socket", retries=Retries(200, max_backoff_seconds=0.1)) as client:
                version = client.status().version
        finally:
            process.terminate()

    assert version
    assert process.returncode == 0


def test_port_in_use_is_named_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = run("--port", str(port))

    advice = "address already in use. Stop that process, or choose another --port."
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1] == f"hadakv: cannot listen on 127.0.0.1:{port}: {advice}"


def test_unknown_flag_is_rejected_with_its_name() -> None:
    finished = run("--colour", "red")

    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("hadakv: unrecognized arguments: --colour red; see ")


def test_invalid_environment_prints_one_line() -> None:
    finished = run(HADAKV_MAX_QUEUED_JOBS="none")

    assert finished.returncode == 2
    assert finished.stderr == "hadakv: HADAKV_MAX_QUEUED_JOBS: must be a whole number, not 'none'\n"


def test_probable_mistakes_are_warned_about() -> None:
    memory = host_memory_nbytes()
    environment = {"HADAKV_MEMORY_BUGDET": "1GiB", "hadakv_port": "1", "HADAKV_X": "", "HADAKV_URL": "", "HOME": "/"}

    warnings = setting_warnings(Settings(memory_budget=memory + (1 << 30)), environment)

    assert warnings == [
        "ignored the unknown environment variable HADAKV_MEMORY_BUGDET; did you mean HADAKV_MEMORY_BUDGET?",
        "ignored the unknown environment variable HADAKV_X",
        "ignored the unknown environment variable hadakv_port; did you mean HADAKV_PORT?",
        warnings[-1],
    ]
    assert re.fullmatch(r"--memory-budget \S+ is more than the memory of this machine, \S+", warnings[-1])
    assert setting_warnings(Settings(memory_budget=memory), {"HADAKV_PORT": "1"}) == []


def test_misspelt_variable_is_logged_at_the_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HADAKV_MEMORY_BUGDET", "1GiB")

    with running_service("--log-format", "console"):
        pass

    assert "ignored the unknown environment variable HADAKV_MEMORY_BUGDET; did you mean" in capfd.readouterr().err


def test_wrong_flag_is_reported_before_the_service_is_imported() -> None:
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hadakv_service", "--port", "http"],
        capture_output=True,
        text=True,
        check=False,
    )

    imported = set(re.findall(r"\| +([\w.]+)$", finished.stderr, re.MULTILINE))
    assert "pydantic" in imported
    assert imported.isdisjoint({"numpy", "mlx.core", "fastapi", "uvicorn", "starlette", "hadakv_kernels", "typer"})
    assert finished.stderr.endswith("hadakv: --port: must be a whole number, not 'http'\n")


def test_insecure_allows_bind_beyond_loopback() -> None:
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
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_start_on_a_taken_port_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        finished = run("--port", str(port))

    assert finished.returncode not in (0, None)
    assert str(port) in finished.stderr
    assert "Traceback" not in finished.stderr


def test_service_of_a_demo_ignores_the_users_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--data-dir", str(tmp_path), "--disk-budget", "64MiB")
    monkeypatch.setenv("HADAKV_DATA_DIR", str(tmp_path))
    with running_service(*flags) as service, Client(service.url) as client:
        client.session("mine").create(durability="ack")

    with running_service(log=subprocess.DEVNULL) as service, Client(service.url) as client:
        client.session("mine").create()

    with running_service(*flags) as service, Client(service.url) as client:
        assert [info.session for info in client.sessions()] == ["mine"]
