"""Program `hadakv` against the real service: what it prints, which files it leaves, and its exit status."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import trustme

from hadakv_client import Client
from hadakv_service.testing import RunningService, running_service
from support.cli import PROGRAM, Finished, assert_fails, environment, read_terminal, run_program, start_on_terminal

INSTALLED = Path(sys.executable).with_name("hadakv")
K = np.random.default_rng(4).standard_normal((6, 2, 112, 256)).astype(np.float16)
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"

Run = Callable[..., Finished]


@pytest.fixture
def run(server: RunningService, tmp_path: Path) -> Run:
    """Return a function that runs the program in a folder of this test."""

    def run(*arguments: object, url: str = server.url, program: list[str] = PROGRAM, **variables: str) -> Finished:
        return run_program(tmp_path, *arguments, url=url, program=program, **variables)

    return run


@pytest.fixture
def names(server: RunningService) -> tuple[str, str]:
    """Create two sessions with the same prefix, one with tokens and one without. Return their ids."""
    name = uuid4().hex
    with Client(server.url) as client:
        client.session(f"{name}.a", {"bits": 4, "norm": "unbiased"}).append(K, K)
        client.session(f"{name}.b").create(window=7, ttl_seconds=600)
    return f"{name}.a", f"{name}.b"


@pytest.mark.parametrize("program", [PROGRAM, [str(INSTALLED)]], ids=["module", "script"])
def test_session_is_exported_removed_and_imported(
    run: Run, names: tuple[str, str], server: RunningService, tmp_path: Path, program: list[str]
) -> None:
    first, _ = names
    with Client(server.url) as client:
        before = client.session(first).read()

        calls = [
            ("export", first, "file"),
            ("sessions", "rm", first),
            ("import", "file"),
            ("import", "file", "--id", f"{first}.copy"),
        ]
        finished = [run(*arguments, program=program) for arguments in calls]

        after = [client.session(each).read() for each in (first, f"{first}.copy")]

    assert [(each.returncode, each.stderr) for each in finished] == [(0, "")] * 4
    exported, removed, imported, copied = (each.stdout for each in finished)
    assert re.fullmatch(r"file: 34\d\.\d KiB\n", exported)
    assert removed == ""
    assert imported == f"{first}: 112 tokens, 6 layers, 346.5 KiB\n"
    assert copied == f"{first}.copy: 112 tokens, 6 layers, 346.5 KiB\n"
    for each in after:
        np.testing.assert_array_equal(each.k.packed, before.k.packed)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_list_prints_columns(run: Run, names: tuple[str, str]) -> None:
    first, second = names

    listed, whole, none = (
        run("sessions", "ls", "--prefix", first[:-1]),
        run("sessions", "ls"),
        run("sessions", "ls", "--prefix", f"{first}.none"),
    )

    heading, *rows = listed.stdout.splitlines()
    assert heading.split() == ["SESSION", "TOKENS", "LAYERS", "SIZE", "WHERE", "DURABILITY", "LAST", "USED"]
    assert re.fullmatch(rf"{first} +112 +6 +346\.5 KiB  memory +memory +{MOMENT}", rows[0])
    assert re.fullmatch(rf"{second} +0 +0 +0 bytes  memory +memory +{MOMENT}", rows[1])
    assert len({len(row) for row in rows}) == 1
    assert {row.split()[0] for row in rows} <= {row.split()[0] for row in whole.stdout.splitlines()}
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "")


def test_show_prints_one_field_per_line(run: Run, names: tuple[str, str]) -> None:
    first, second = (
        dict(re.split(r"  +", line, maxsplit=1) for line in run("sessions", "show", name).stdout.splitlines())
        for name in names
    )

    codec = "4 bits, norm unbiased"
    assert first["session"] == f"{names[0]}: 112 tokens, 6 layers, 346.5 KiB"
    assert (first["shape"], first["as float16"]) == ("2 kv heads, head_dim 256", "1.3 MiB")
    assert (first["k"], first["v"]) == (codec, codec)
    assert second["window"] == "7 tokens"
    assert second.keys() == {
        "session",
        "as float16",
        "window",
        "where",
        "durability",
        "created",
        "last used",
        "expires",
    }
    assert all(re.fullmatch(MOMENT, second[name]) for name in ("created", "last used", "expires"))


def test_rm_deletes_several_sessions(run: Run, names: tuple[str, str]) -> None:
    assert run("sessions", "rm", *names).returncode == 0

    assert run("sessions", "ls", "--prefix", names[0][:-1]).stdout == ""


@pytest.mark.parametrize(
    "arguments", [("sessions", "show", "missing"), ("sessions", "rm", "missing"), ("export", "missing", "new")]
)
def test_missing_session_prints_one_line(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert_fails(run(*arguments), 1, r".*'missing'.* \(404 session-not-found\)")

    assert list(tmp_path.iterdir()) == []


def test_rm_goes_on_after_missing_sessions(run: Run, names: tuple[str, str]) -> None:
    finished = run("sessions", "rm", "missing", names[0], "gone", names[1])

    assert (finished.returncode, finished.stdout) == (1, "")
    assert re.fullmatch(r"hadakv: .*'missing'.*\nhadakv: .*'gone'.*\n", finished.stderr), finished.stderr
    assert run("sessions", "ls", "--prefix", names[0][:-1]).stdout == ""


def test_import_of_invalid_file_prints_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")

    assert_fails(run("import", "other", "--id", "x"), 1, r".*\(400 malformed-body\)")
    assert_fails(run("import", ".", "--id", "x"), 1, r"\.: Is a directory")


def test_export_replaces_a_file_only_with_force(run: Run, names: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("other")

    rejected = run("export", names[0], "file")
    kept = file.read_text()
    forced = run("export", "--force", names[0], "file")

    assert_fails(rejected, 1, "file: already exists; use --force to replace it")
    assert kept == "other"
    assert forced.returncode == 0
    assert file.stat().st_size > 300_000


def test_import_does_not_replace_a_session(run: Run, names: tuple[str, str]) -> None:
    run("export", names[0], "file")

    assert_fails(run("import", "file"), 1, rf".*'{names[0]}'.* \(409 session-exists\)")


def test_closed_pipe_prints_no_error(server: RunningService, names: tuple[str, str]) -> None:
    readable, writable = os.pipe()
    os.close(readable)

    finished = subprocess.run(
        [*PROGRAM, "sessions", "ls", "--prefix", names[0]],
        stdout=writable,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        env=environment(server.url),
    )
    os.close(writable)

    assert finished.stderr == ""


def test_token_comes_from_the_environment_or_a_file(run: Run, tmp_path: Path) -> None:
    tokens, mine = tmp_path / "tokens", tmp_path / "mine"
    tokens.write_text(f"alice:{hashlib.sha256(b'a secret').hexdigest()}\n")
    mine.write_text("a secret\n")

    with running_service("--token-file", str(tokens)) as service:
        rejected = run("sessions", "ls", url=service.url)
        by_variable = run("sessions", "ls", url=service.url, HADAKV_TOKEN="a secret")
        by_file = run("sessions", "ls", "--token-file", "mine", url=service.url, HADAKV_TOKEN="another")

    assert_fails(rejected, 1, r".*\(401 unauthorized\); set the token with --token-file or HADAKV_TOKEN")
    assert [(each.returncode, each.stderr) for each in (by_variable, by_file)] == [(0, "")] * 2


def test_ca_file_comes_from_the_environment_or_an_option(run: Run, tmp_path: Path) -> None:
    authority, (served, own) = trustme.CA(), (tmp_path / "served.pem", tmp_path / "own.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(served)
    authority.cert_pem.write_to_path(own)

    with running_service("--tls-cert", str(served)) as service:
        unknown = run("sessions", "ls", url=service.url)
        by_option = run("sessions", "ls", "--ca-file", "own.pem", url=service.url)
        by_variable = run("sessions", "ls", url=service.url, HADAKV_CA_FILE="own.pem")

    assert_fails(unknown, 3, rf"GET /sessions at {service.url}: .*CERTIFICATE_VERIFY_FAILED.*")
    assert [(each.returncode, each.stderr) for each in (by_option, by_variable)] == [(0, "")] * 2


def test_url_can_be_the_path_of_a_unix_socket(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    process = subprocess.Popen(
        [sys.executable, "-m", "hadakv_service", "--uds", str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = re.search(r"unix:[^,]+", process.stdout.readline())
        assert address is not None
        with Client(address[0]) as client:
            client.session("a").append(K, K)
        finished = run("export", "a", "file", "--url", address[0])
    finally:
        process.terminate()
        process.communicate()

    assert (finished.returncode, finished.stderr) == (0, "")
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize("command", ["export", "import"])
def test_progress_is_shown_on_a_terminal_and_cleared(
    run: Run, names: tuple[str, str], server: RunningService, tmp_path: Path, command: str
) -> None:
    run("export", names[0], "there")
    arguments = {"export": ("export", names[0], "file"), "import": ("import", "there", "--id", f"{names[0]}.copy")}

    process, terminal = start_on_terminal(server.url, tmp_path, *arguments[command])
    shown = read_terminal(terminal)
    printed, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert re.search(r"\r34\d\.\d KiB of 34\d\.\d KiB, 100 %\x1b\[K", shown)
    assert shown.endswith("\r\x1b[K")
    assert "347" in printed or "346.5 KiB" in printed
