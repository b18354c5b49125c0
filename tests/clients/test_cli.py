"""The program `hadakv`, run as its users run it: what it prints, what it leaves, how it ends."""

import hashlib
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import trustme

from hadakv_client import Client
from hadakv_service.testing import RunningService, running_service

PROGRAM = [sys.executable, "-m", "hadakv_client"]
INSTALLED = Path(sys.executable).with_name("hadakv")
K = np.random.default_rng(4).standard_normal((6, 2, 112, 256)).astype(np.float16)
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"

Finished = subprocess.CompletedProcess[str]
Run = Callable[..., Finished]


def environment(url: str = "", **more: str) -> dict[str, str]:
    """This process's own, but that the program knows no other service or token than these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HADAKV_")}
    return kept | ({"HADAKV_URL": url} if url else {}) | more


@pytest.fixture
def run(server: RunningService, tmp_path: Path) -> Run:
    """Runs the program to its end, in a folder of its own."""

    def run(*arguments: object, program: list[str] = PROGRAM, **more: str) -> Finished:
        command = [*program, *map(str, arguments)]
        named = environment(server.url, **more)
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env=named)

    return run


@pytest.fixture
def names(server: RunningService) -> tuple[str, str]:
    """Ids of two sessions of the test's own that begin alike: one with tokens, one without."""
    name = uuid4().hex
    with Client(server.url) as client:
        client.session(f"{name}.a", {"bits": 4, "norm": "unbiased"}).append(K, K)
        client.session(f"{name}.b").create(window=7, ttl_seconds=600)
    return f"{name}.a", f"{name}.b"


def assert_fails(finished: Finished, status: int, reason: str) -> None:
    """It must say why in one line and no more."""
    assert (finished.returncode, finished.stdout) == (status, ""), finished
    assert re.fullmatch(f"hadakv: {reason}\n", finished.stderr), finished.stderr


@pytest.mark.parametrize("program", [PROGRAM, [str(INSTALLED)]], ids=["module", "script"])
def test_a_session_goes_to_a_file_and_comes_back(
    run: Run, names: tuple[str, str], server: RunningService, tmp_path: Path, program: list[str]
) -> None:
    first, _ = names
    with Client(server.url) as client:
        before = client.session(first).read()

        calls = [
            ("export", first, "file"),
            ("rm", first),
            ("import", "file"),
            ("import", "file", "--id", f"{first}.copy"),
        ]
        finished = [run(*arguments, program=program) for arguments in calls]

        after = [client.session(each).read() for each in (first, f"{first}.copy")]

    assert [(each.returncode, each.stderr) for each in finished] == [(0, "")] * 4
    exported, removed, imported, copied = (each.stdout for each in finished)
    assert re.fullmatch(r"file: 349\.\d KiB\n", exported)
    assert removed == ""
    assert imported == f"{first}: 112 tokens, 6 layers, 346.5 KiB\n"
    assert copied == f"{first}.copy: 112 tokens, 6 layers, 346.5 KiB\n"
    for each in after:
        np.testing.assert_array_equal(each.k.packed, before.k.packed)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_sessions_are_listed_in_columns(run: Run, names: tuple[str, str]) -> None:
    first, second = names

    listed, whole, none = run("list", first[:-1]), run("list"), run("list", f"{first}.none")

    heading, *rows = listed.stdout.splitlines()
    assert heading.split() == ["SESSION", "TOKENS", "LAYERS", "SIZE", "LAST", "USED"]
    assert re.fullmatch(rf"{first} +112 +6 +346\.5 KiB  {MOMENT}", rows[0])
    assert re.fullmatch(rf"{second} +0 +0 +0 bytes  {MOMENT}", rows[1])
    assert len({len(row) for row in rows}) == 1
    assert {row.split()[0] for row in rows} <= {row.split()[0] for row in whole.stdout.splitlines()}
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "")


def test_a_session_is_shown_line_by_line(run: Run, names: tuple[str, str]) -> None:
    first, second = (
        dict(re.split(r"  +", line, maxsplit=1) for line in run("show", name).stdout.splitlines()) for name in names
    )

    codec = "bits 4, rotation hadamard, layout dense, codebook mlx-native, norm unbiased, kind quantized"
    assert first["session"] == f"{names[0]}: 112 tokens, 6 layers, 346.5 KiB"
    assert (first["shape"], first["as float16"]) == ("2 kv heads, head_dim 256", "1.3 MiB")
    assert (first["k"], first["v"]) == (codec, codec)
    assert second["window"] == "7 tokens"
    assert second.keys() == {"session", "as float16", "window", "tier", "created", "last used", "expires"}
    assert all(re.fullmatch(MOMENT, second[name]) for name in ("created", "last used", "expires"))


def test_several_sessions_are_forgotten_at_once(run: Run, names: tuple[str, str]) -> None:
    assert run("rm", *names).returncode == 0

    assert run("list", names[0][:-1]).stdout == ""


# What goes wrong

FAILURES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "a session there is not": (("show", "nobody"), 1, r"There is no session 'nobody'\. \(404 session-not-found\)"),
    "nothing to forget": (("rm", "nobody"), 1, r"There is no session 'nobody'\. \(404 session-not-found\)"),
    "nothing to export": (("export", "nobody", "new"), 1, r"There is no session 'nobody'\. .*"),
    "a file there is not": (("import", "nowhere"), 1, "nowhere: No such file or directory"),
    "a folder for a file": (("import", ".", "--id", "x"), 1, r"\.: Is a directory"),
    "a file of something else": (("import", "taken"), 1, "taken is no file that a session was exported to"),
    "a file of something else, with an id": (
        ("import", "taken", "--id", "x"),
        1,
        r".* truncated.*\(400 malformed-body\)",
    ),
    "nobody at the address": (
        ("--url", "http://user:secret@127.0.0.1:1", "list"),
        3,
        r"GET /sessions at http://127\.0\.0\.1:1: .*refused",
    ),
    "no socket": (("list", "--url", "unix:/nowhere"), 3, "GET /sessions at unix:/nowhere: .*No such file or directory"),
    "no token file": (("list", "--token-file", "nowhere"), 1, "nowhere: No such file or directory"),
    "no file of authorities": (("list", "--ca-file", "nowhere"), 1, "nowhere: No such file or directory"),
    "a file of authorities without any": (("list", "--ca-file", "taken"), 1, "taken has no certificate in PEM"),
}


@pytest.mark.parametrize(("arguments", "status", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_line_and_a_status(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], status: int, reason: str
) -> None:
    (tmp_path / "taken").write_text("other")

    assert_fails(run(*arguments), status, reason)

    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


NONSENSE: dict[tuple[str, ...], str] = {
    (): "COMMAND",
    ("export", "a"): "FILE",
    ("import",): "FILE",
    ("rm",): "ID",
    ("list", "--colour"): "--colour",
    ("sing",): "'sing'",
    ("--url", "ftp://localhost", "list"): "the URL must be like .*, not 'ftp://localhost'",
    ("list", "--url", "unix:"): "the URL must be like .*, not 'unix:'",
    ("show", "a/b"): "a session's id must be .* and not 'a/b'",
    ("rm", "a", ".."): r"a session's id must be .* and not '\.\.'",
    ("import", "file", "--id", ""): "a session's id must be .* and not ''",
    ("export", "a", "-"): "cannot go through a pipe; a file of that name is ./-",
    ("import", "-"): "cannot go through a pipe; a file of that name is ./-",
}


@pytest.mark.parametrize(("arguments", "reason"), NONSENSE.items(), ids=str)
def test_a_command_line_that_makes_no_sense_is_refused_with_the_usage(
    run: Run, arguments: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    finished = run(*arguments)

    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("usage: hadakv")
    assert re.search(f"error: .*{reason}", finished.stderr), finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_makes_no_sense_is_refused_likewise(run: Run) -> None:
    finished = run("list", HADAKV_URL="nonsense")

    assert (finished.returncode, finished.stdout) == (2, "")
    assert "error: HADAKV_URL: the URL must be like " in finished.stderr


def test_help_tells_every_command(run: Run) -> None:
    finished = run("--help")

    assert (finished.returncode, finished.stderr) == (0, "")
    assert all(f"\n    {command} " in finished.stdout for command in ("export", "import", "list", "show", "rm"))
    assert "HADAKV_URL" in finished.stdout
    assert "HADAKV_TOKEN" in finished.stdout
    assert "HADAKV_CA_FILE" in finished.stdout


def test_a_file_is_replaced_only_by_force(run: Run, names: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("other")

    refused = run("export", names[0], "file")
    kept = file.read_text()
    forced = run("export", "--force", names[0], "file")

    assert_fails(refused, 1, "file: is there already; --force replaces it")
    assert kept == "other"
    assert forced.returncode == 0
    assert file.stat().st_size > 300_000


def test_a_session_is_not_replaced(run: Run, names: tuple[str, str]) -> None:
    run("export", names[0], "file")

    assert_fails(run("import", "file"), 1, rf"The session '{names[0]}' exists already\. \(409 session-exists\)")


def test_whoever_stops_reading_a_list_is_no_error(server: RunningService, names: tuple[str, str]) -> None:
    readable, writable = os.pipe()
    os.close(readable)

    finished = subprocess.run(
        [*PROGRAM, "list", names[0]],
        stdout=writable,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        env=environment(server.url),
    )
    os.close(writable)

    assert finished.stderr == ""


# Who and where


def test_a_token_comes_from_the_environment_or_a_file(run: Run, tmp_path: Path) -> None:
    tokens, mine = tmp_path / "tokens", tmp_path / "mine"
    tokens.write_text(f"alice:{hashlib.sha256(b'a secret').hexdigest()}\n")
    mine.write_text("a secret\n")

    with running_service("--token-file", str(tokens)) as service:
        there = {"HADAKV_URL": service.url}
        refused = run("list", **there)
        by_name = run("list", **there, HADAKV_TOKEN="a secret")
        by_file = run("list", "--token-file", "mine", **there, HADAKV_TOKEN="another")

    assert_fails(refused, 1, r".*\(401 unauthorized\); --token-file and HADAKV_TOKEN say who calls")
    assert [(each.returncode, each.stderr) for each in (by_name, by_file)] == [(0, "")] * 2


def test_a_service_that_an_authority_of_its_own_vouches_for_is_trusted_by_its_file(run: Run, tmp_path: Path) -> None:
    authority, (served, own) = trustme.CA(), (tmp_path / "served.pem", tmp_path / "own.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(served)
    authority.cert_pem.write_to_path(own)

    with running_service("--tls-cert", str(served)) as service:
        there = {"HADAKV_URL": service.url}
        unknown = run("list", **there)
        by_flag = run("list", "--ca-file", "own.pem", **there)
        by_name = run("list", **there, HADAKV_CA_FILE="own.pem")

    assert_fails(unknown, 3, rf"GET /sessions at {service.url}: .*CERTIFICATE_VERIFY_FAILED.*")
    assert [(each.returncode, each.stderr) for each in (by_flag, by_name)] == [(0, "")] * 2


def test_a_service_at_a_unix_socket_is_found_by_its_path(run: Run, tmp_path: Path) -> None:
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


# On a terminal


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Programs started within can be interrupted, also if this one was started in the background and cannot."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def on_a_terminal(url: str, folder: Path, *arguments: str) -> tuple["subprocess.Popen[str]", int]:
    """Start the program with a terminal as its stderr; the process, and what reads from the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=theirs, text=True, cwd=folder, env=environment(url)
    )
    os.close(theirs)
    return process, ours


def seen_on(terminal: int) -> str:
    """All that a program writes there until it ends."""
    seen = b""
    try:
        while piece := os.read(terminal, 1 << 16):
            seen += piece
    except OSError:  # Linux says so when nobody has the other side any more
        pass
    os.close(terminal)
    return seen.decode()


@pytest.mark.parametrize("command", ["export", "import"])
def test_progress_is_shown_on_a_terminal_and_wiped_away(
    run: Run, names: tuple[str, str], server: RunningService, tmp_path: Path, command: str
) -> None:
    run("export", names[0], "there")
    arguments = {"export": ("export", names[0], "file"), "import": ("import", "there", "--id", f"{names[0]}.copy")}

    process, terminal = on_a_terminal(server.url, tmp_path, *arguments[command])
    shown = seen_on(terminal)
    told, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert re.search(r"\r349\.\d KiB of 349\.\d KiB, 100 %\x1b\[K", shown)
    assert shown.endswith("\r\x1b[K")
    assert "349" in told or "346.5 KiB" in told


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupted_export_leaves_nothing(rigged: Callable[..., Any], tmp_path: Path) -> None:
    def begins(exchange: Any) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 4000000\r\n\r\n")
        exchange.send(bytes(2_000_000))

    server = rigged(begins)

    process, terminal = on_a_terminal(server.url, tmp_path, "export", "a", "file")
    first = os.read(terminal, 1)
    process.send_signal(signal.SIGINT)
    shown = seen_on(terminal)
    process.communicate(timeout=60)

    assert first == b"\r"
    assert process.returncode == 130
    assert shown.endswith("hadakv: interrupted\r\n")
    assert list(tmp_path.iterdir()) == []
