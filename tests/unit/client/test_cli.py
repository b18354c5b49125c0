"""Program `hadakv` without a service: usage, help, errors, an interrupted export, and the text it prints."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hadakv_cli.app import app
from hadakv_cli.output import columns, describe, format_size, print_sessions, session_document, summarize, table_rows
from hadakv_client import Codec, Codecs, LayerSpan, SessionInfo
from support.cli import (
    PROGRAM,
    Finished,
    assert_fails,
    environment,
    read_terminal,
    run_program,
    start_on_terminal,
)

FAILURES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "missing file": (("import", "nowhere"), 1, "nowhere: No such file or directory"),
    "folder": (("import", "."), 1, r"\.: Is a directory"),
    "other file": (("import", "other"), 1, "other is not a hadakv session file"),
    "existing file": (("export", "a", "other"), 1, "other: already exists; use --force to replace it"),
    "no service": (
        ("--url", "http://user:secret@127.0.0.1:1", "sessions", "ls"),
        3,
        r"No hadakv service answers at http://127\.0\.0\.1:1 \(.*refused\)\. Start one with `hadakv serve`, .*",
    ),
    "no socket": (
        ("sessions", "ls", "--url", "unix:/nowhere"),
        3,
        "No hadakv service answers at unix:/nowhere .*HADAKV_URL.*",
    ),
    "missing token file": (("sessions", "ls", "--token-file", "nowhere"), 1, "nowhere: No such file or directory"),
    "missing CA file": (("sessions", "ls", "--ca-file", "nowhere"), 1, "nowhere: No such file or directory"),
    "token file that is no text": (("sessions", "ls", "--token-file", "bytes"), 1, "bytes is not text in UTF-8"),
    "huge number": (("sessions", "truncate", "a", f"{10**20}"), 1, f"length is too large: {10**20}"),
    "long prefix": (
        ("sessions", "ls", "--prefix", "a" * 70_000),
        1,
        "a prefix of session ids has at most 128 characters, not 70000",
    ),
    "CA file without certificate": (("sessions", "ls", "--ca-file", "other"), 1, "other contains no PEM certificate"),
}
USAGE_ERRORS: dict[tuple[str, ...], str] = {
    ("export", "a"): r"Missing argument 'FILE'; see hadakv export --help",
    ("import",): "Missing argument 'FILE.*",
    ("sessions", "rm"): "give session ids, --prefix or --all; see hadakv sessions rm --help",
    ("sessions", "rm", "a", "--prefix", "b"): "give session ids, --prefix or --all; .*",
    ("sessions", "rm", "--prefix", ""): "--prefix is empty; .*",
    ("sessions", "ls", "--colour"): "No such option: --colour.*",
    ("sing",): "No such command 'sing'; see hadakv --help",
    ("list",): r"No such command 'list'\. Did you mean 'hadakv sessions ls'\?; see hadakv --help",
    ("version",): r"No such command 'version'\. Did you mean 'hadakv --version'\?; see hadakv --help",
    (
        "sessions",
        "delete",
        "a",
    ): "No such command .delete.\\. Did you mean .hadakv sessions rm.*",
    ("sessions", "lst"): "No such command 'lst'.*ls.*",
    ("--url", "ftp://localhost", "sessions", "ls"): "--url: the URL must be like .*, not 'ftp://localhost'.*",
    ("--url", "http://localhost:99999", "status"): "--url: the URL must be like .*, not 'http://localhost:99999'.*",
    ("sessions", "ls", "--url", "unix:"): "--url: the URL must be like .*, not 'unix:'.*",
    ("sessions", "show", "a/b"): "a session id must be .*, not 'a/b'; see .*",
    ("sessions", "rm", "a", ".."): r"a session id must be .*, not '\.\.'; see .*",
    ("import", "file", "--id", ""): "a session id must be .*, not ''; see .*",
    ("import", "file", "other", "--id", "a"): "--id needs exactly one file.*",
    ("sessions", "truncate", "a", "-1"): ".*-1.*",
    ("sessions", "truncate", "a", "x"): "Invalid value for 'LENGTH': 'x' is not a whole number; .*",
    ("get", "a", "file"): "file: the name must end in .npz or .safetensors, or give --format.*",
    ("get", "a", "file.npz", "--form", "bfloat16"): "--form bfloat16 needs --format safetensors.*",
    ("token", "add", "a b"): "the name must be 1 to 64 of .*, not 'a b'.*",
    ("token", "add", "a", "--quota", "much"): "--quota: must be a size such as 4GiB, or none, not 'much'.*",
    ("token", "add", "a", "--sessions", "-1"): "--sessions: must be a whole number, or none, not '-1'.*",
}
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def run(folder: Path, *arguments: object, **variables: str) -> Finished:
    """Run the program where no service listens."""
    return run_program(folder, *arguments, url="http://127.0.0.1:1", **variables)


def session_info(session: str, **given: Any) -> SessionInfo:
    undecided = dict.fromkeys(["codec", "kv_heads", "head_dim", "window", "ttl_seconds", "expires"])
    empty = {"layers": (), "length": 0, "nbytes": 0, "raw_nbytes": 0, "tier": "memory", "durability": "spill"}
    return SessionInfo(session=session, created=MOMENT, last_used=MOMENT, **{**undecided, **empty, **given})


@pytest.mark.parametrize(("arguments", "status", "message"), FAILURES.values(), ids=FAILURES)
def test_failure_prints_one_line_and_sets_the_status(
    tmp_path: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    (tmp_path / "other").write_text("other")
    (tmp_path / "bytes").write_bytes(b"\xff")

    assert_fails(run(tmp_path, *arguments), status, message)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["bytes", "other"]


@pytest.mark.parametrize(("arguments", "message"), USAGE_ERRORS.items(), ids=str)
def test_invalid_command_line_prints_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert_fails(run(tmp_path, *arguments), 2, message)

    assert list(tmp_path.iterdir()) == []


def test_invalid_url_in_the_environment_is_a_usage_error(tmp_path: Path) -> None:
    assert_fails(run(tmp_path, "sessions", "ls", HADAKV_URL="nonsense"), 2, "HADAKV_URL: the URL must be like .*")


UNFIT_FILES = {
    "other file": ("key: value\n", "tokens:1 is not a line of a token file"),
    "bytes": ("\x00\x01", "tokens:1 is not a line of a token file"),
    "another quota": (f"# team\n\nalice:{'0a' * 32} quota=4GiB\n", "tokens:3: alice already has quota=4GiB; .*"),
}


@pytest.mark.parametrize(("text", "message"), UNFIT_FILES.values(), ids=UNFIT_FILES)
def test_token_is_not_added_to_a_file_that_the_service_would_reject(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokens").write_text(text)

    assert_fails(run(tmp_path, "token", "add", "alice", "--quota", "5GiB"), 1, message)

    assert (tmp_path / "tokens").read_text() == text


@pytest.mark.parametrize("arguments", [(), ("sessions",), ("token",)], ids=str)
def test_missing_command_prints_help_and_says_so(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    finished = run(tmp_path, *arguments)

    program = " ".join(["hadakv", *arguments])
    assert (finished.returncode, finished.stderr) == (2, f"hadakv: a command is missing; see {program} --help\n")
    assert f"Usage: {program} [OPTIONS] COMMAND" in finished.stdout


def test_file_that_is_no_token_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("two\nlines")

    assert_fails(run(tmp_path, "status", "--token-file", "notes"), 2, "notes holds no token: .*")


HASHES = f"# team\nalice:{'0a' * 32} quota=4GiB\n"


@pytest.mark.parametrize("source", ["option", "variable"])
def test_hashes_instead_of_a_token_are_noticed(tmp_path: Path, source: str) -> None:
    (tmp_path / "tokens").write_text(HASHES)
    flags = ("--token-file", "tokens") if source == "option" else ()
    variables = {} if flags else {"HADAKV_TOKEN": HASHES}

    finished = run(tmp_path, "sessions", "ls", *flags, **variables)

    assert_fails(
        finished, 2, f"{'tokens' if flags else 'HADAKV_TOKEN'} holds hashes of tokens.*hadakv token add NAME.*"
    )


def test_help_lists_commands_and_environment_variables(tmp_path: Path) -> None:
    finished = run(tmp_path, "--help", COLUMNS="200")

    assert (finished.returncode, finished.stderr) == (0, "")
    names = re.findall(r"^│ ([a-z]+) ", finished.stdout, re.MULTILINE)
    assert names == ["serve", "status", "token", "export", "import", "put", "get", "sessions"]
    assert {"HADAKV_URL", "HADAKV_TOKEN", "HADAKV_CA_FILE"} <= set(re.findall(r"HADAKV_[A-Z_]+", finished.stdout))


COMMANDS = [("status",), ("token", "add"), ("export",), ("import",), ("put",), ("get",)]
COMMANDS += [("sessions", name) for name in ("ls", "show", "rm", "fork", "truncate", "export", "import")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_a_command_has_examples(command: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})

    assert shown.exit_code == 0
    assert re.search(
        rf"Examples:\s+hadakv {' '.join(command[-1:])}|Examples:\s+hadakv {' '.join(command)}", shown.stdout
    )
    assert "--json" in shown.stdout


@pytest.mark.parametrize("arguments", [("--version",), ("serve", "--version")])
def test_version_is_that_of_the_package(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    finished = run(tmp_path, *arguments)

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, f"hadakv {version('hadakv')}\n", "")


def test_help_imports_neither_client_nor_numpy(tmp_path: Path) -> None:
    program = [sys.executable, "-X", "importtime", "-m", "hadakv_cli"]

    imported = run_program(tmp_path, "sessions", "rm", "--help", program=program).stderr

    assert "typer" in imported
    assert not re.search(r"\b(numpy|httpx|hadakv_client|pydantic)\b", imported)


@pytest.mark.parametrize("before", [(), ("--url", "http://127.0.0.1:1")])
def test_serve_passes_its_flags_on(tmp_path: Path, before: tuple[str, ...]) -> None:
    helped, failed = run(tmp_path, *before, "serve", "--help"), run(tmp_path, *before, "serve", "--port", "http")

    assert helped.stdout.startswith("usage: hadakv serve [OPTIONS]\n")
    assert "\nSecurity:\n" in helped.stdout
    assert_fails(failed, 2, "--port: must be a whole number, not 'http'")


@pytest.mark.parametrize("program", [["-m", "hadakv_cli", "serve"], ["-m", "hadakv_service"]], ids=" ".join)
@pytest.mark.parametrize("missing", ["pydantic", "uvicorn"])
def test_missing_extra_is_named(tmp_path: Path, program: list[str], missing: str) -> None:
    hide = f"import sys, runpy; sys.modules['{missing}'] = None; sys.argv = sys.argv[1:]; "
    hide += "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"

    finished = run_program(tmp_path, *program[1:], "--port", "0", program=[sys.executable, "-c", hide])

    assert_fails(finished, 1, r"the service needs its extra: pip install 'hadakv\[server\]'")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("arguments", [("--version",), ("token", "add", "alice")])
def test_full_stdout_is_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        finished = subprocess.run(
            [*PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
        )

    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1] == "hadakv: standard output: No space left on device"


CLOSED: dict[str, tuple[str, int, str]] = {
    "stdout": ("token add alice --json >&-", 1, "hadakv: standard output: Bad file descriptor"),
    "stdin": ("put a - <&-", 1, "hadakv: .*Bad file descriptor"),
    "ids on stdin": ("sessions rm - <&-", 1, "hadakv: .*Bad file descriptor"),
    "stdin without an answer": ("import - <&-", 1, "hadakv: .*Bad file descriptor"),
    "stderr": ("sessions show a/b 2>&-", 2, ""),
}


@pytest.mark.parametrize(("arguments", "status", "message"), CLOSED.values(), ids=CLOSED)
def test_closed_standard_stream_is_an_error_in_one_line(
    tmp_path: Path, arguments: str, status: int, message: str
) -> None:
    shell = ["/bin/sh", "-c", f'"$0" -m hadakv_cli {arguments}', sys.executable]

    finished = subprocess.run(
        shell, capture_output=True, text=True, cwd=tmp_path, check=False, env=environment("http://127.0.0.1:1")
    )

    assert (finished.returncode, finished.stdout) == (status, "")
    assert re.fullmatch(message, finished.stderr.strip().split("\n")[-1]), finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Let child processes receive SIGINT, even if this process was started in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize(
    ("number", "status", "message"),
    [(signal.SIGINT, 130, "hadakv: interrupted\r\n"), (signal.SIGTERM, 143, "\x1b[K"), (signal.SIGHUP, 129, "\x1b[K")],
)
def test_interrupted_export_leaves_no_file(
    scripted_server: Callable[..., Any], tmp_path: Path, number: signal.Signals, status: int, message: str
) -> None:
    def send_half(exchange: Any) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 4000000\r\n\r\n")
        exchange.send(bytes(2_000_000))

    server = scripted_server(send_half)

    process, terminal = start_on_terminal(server.url, tmp_path, "export", "a", "file")
    first = os.read(terminal, 1)
    process.send_signal(number)
    shown = read_terminal(terminal)
    process.communicate(timeout=60)

    assert first == b"\r"
    assert process.returncode == status
    assert shown.endswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (3 << 19, "1.5 MiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 41, "2048.0 GiB"),
    ],
)
def test_size_has_a_unit(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text


def test_table_has_aligned_columns_and_a_heading() -> None:
    sessions = [session_info("a", length=7, nbytes=2048), session_info("longer", layers=(LayerSpan(0, 0, 7),))]

    heading, *rows = table_rows(map(columns, sessions))

    assert heading == "SESSION  TOKENS  LAYERS     SIZE  WHERE   DURABILITY  LAST USED"
    assert [row[:54] for row in rows] == [
        "a             7       0  2.0 KiB  memory  spill       ",
        "longer        0       1  0 bytes  memory  spill       ",
    ]
    assert list(table_rows([])) == []


@pytest.mark.parametrize(("is_terminal", "printed"), [(True, "no sessions\n"), (False, "")])
def test_empty_table_is_a_message_on_a_terminal(
    is_terminal: bool, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)

    print_sessions([])

    assert capsys.readouterr().out == printed


def test_description_leaves_out_undecided_fields() -> None:
    described = describe(session_info("a", window=7))

    assert described.keys() == {"session", "as float16", "window", "where", "durability", "created", "last used"}
    assert described["session"] == summarize(session_info("a")) == "a: 0 tokens, 0 layers, 0 bytes"
    assert described["window"] == "7 tokens"


@pytest.mark.parametrize(
    ("codec", "text"),
    [(Codec(bits=3), "3 bits"), (Codec(norm="unbiased"), "4 bits, norm unbiased"), (Codec(kind="float16"), "float16")],
)
def test_codec_is_described_by_what_differs_from_the_default(codec: Codec, text: str) -> None:
    assert describe(session_info("a", codec=Codecs(codec, codec)))["k"] == text


def test_session_document_is_json_with_the_names_of_the_api() -> None:
    info = session_info("a", layers=(LayerSpan(0, 2, 7),), codec=Codecs(Codec(), Codec(bits=3)), expires=MOMENT)

    document = json.loads(json.dumps(session_document(info)))

    assert document["layers"] == [{"layer": 0, "start": 2, "length": 7}]
    assert document["codec"]["v"]["bits"] == 3
    assert document["created"] == document["expires"] == MOMENT.isoformat()
    assert document.keys() == {field.name for field in fields(SessionInfo)}
