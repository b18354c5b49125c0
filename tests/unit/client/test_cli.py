"""Program `hadakv` without a service: usage, help, errors, an interrupted export, and the text it prints."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hadakv_cli.output import describe, format_size, summarize, table_rows
from hadakv_client import LayerSpan, SessionInfo
from support.cli import Finished, assert_fails, read_terminal, run_program, start_on_terminal

FAILURES: dict[str, tuple[tuple[str, ...], int, str]] = {
    "missing file": (("import", "nowhere"), 1, "nowhere: No such file or directory"),
    "folder": (("import", "."), 1, r"\.: Is a directory"),
    "other file": (("import", "other"), 1, "other is not a hadakv session file"),
    "existing file": (("export", "a", "other"), 1, "other: already exists; use --force to replace it"),
    "no service": (
        ("--url", "http://user:secret@127.0.0.1:1", "list"),
        3,
        r"No hadakv service answers at http://127\.0\.0\.1:1 \(.*refused\)\. Start one with `hadakv serve`, .*",
    ),
    "no socket": (("list", "--url", "unix:/nowhere"), 3, "No hadakv service answers at unix:/nowhere .*HADAKV_URL.*"),
    "missing token file": (("list", "--token-file", "nowhere"), 1, "nowhere: No such file or directory"),
    "missing CA file": (("list", "--ca-file", "nowhere"), 1, "nowhere: No such file or directory"),
    "CA file without certificate": (("list", "--ca-file", "other"), 1, "other contains no PEM certificate"),
}
USAGE_ERRORS: dict[tuple[str, ...], str] = {
    (): "COMMAND",
    ("export", "a"): "FILE",
    ("import",): "FILE",
    ("rm",): "ID",
    ("list", "--colour"): "--colour",
    ("sing",): "'sing'",
    ("--url", "ftp://localhost", "list"): "the URL must be like .*, not 'ftp://localhost'",
    ("list", "--url", "unix:"): "the URL must be like .*, not 'unix:'",
    ("show", "a/b"): "a session id must be .* and not 'a/b'",
    ("rm", "a", ".."): r"a session id must be .* and not '\.\.'",
    ("import", "file", "--id", ""): "a session id must be .* and not ''",
    ("export", "a", "-"): "pipes are not supported; write ./- for a file named -",
    ("import", "-"): "pipes are not supported; write ./- for a file named -",
}
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def run(folder: Path, *arguments: object, **variables: str) -> Finished:
    """Run the program where no service listens."""
    return run_program(folder, *arguments, url="http://127.0.0.1:1", **variables)


def session_info(session: str, **fields: Any) -> SessionInfo:
    undecided = dict.fromkeys(["codec", "kv_heads", "head_dim", "window", "ttl_seconds", "expires"])
    empty = {"layers": (), "length": 0, "nbytes": 0, "raw_nbytes": 0, "tier": "memory", "durability": "spill"}
    return SessionInfo(session=session, created=MOMENT, last_used=MOMENT, **{**undecided, **empty, **fields})


@pytest.mark.parametrize(("arguments", "status", "message"), FAILURES.values(), ids=FAILURES)
def test_failure_prints_one_line_and_sets_the_status(
    tmp_path: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    (tmp_path / "other").write_text("other")

    assert_fails(run(tmp_path, *arguments), status, message)

    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(("arguments", "message"), USAGE_ERRORS.items(), ids=str)
def test_invalid_command_line_prints_the_usage(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    finished = run(tmp_path, *arguments)

    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("usage: hadakv")
    assert re.search(f"error: .*{message}", finished.stderr), finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_invalid_url_in_the_environment_is_a_usage_error(tmp_path: Path) -> None:
    finished = run(tmp_path, "list", HADAKV_URL="nonsense")

    assert (finished.returncode, finished.stdout) == (2, "")
    assert "error: HADAKV_URL: the URL must be like " in finished.stderr


def test_help_lists_commands_and_environment_variables(tmp_path: Path) -> None:
    finished = run(tmp_path, "--help")

    assert (finished.returncode, finished.stderr) == (0, "")
    assert all(f"\n    {command} " in finished.stdout for command in ("export", "import", "list", "show", "rm"))
    assert "HADAKV_URL" in finished.stdout
    assert "HADAKV_TOKEN" in finished.stdout
    assert "HADAKV_CA_FILE" in finished.stdout


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Let child processes receive SIGINT, even if this process was started in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_interrupted_export_leaves_no_file(scripted_server: Callable[..., Any], tmp_path: Path) -> None:
    def send_half(exchange: Any) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 4000000\r\n\r\n")
        exchange.send(bytes(2_000_000))

    server = scripted_server(send_half)

    process, terminal = start_on_terminal(server.url, tmp_path, "export", "a", "file")
    first = os.read(terminal, 1)
    process.send_signal(signal.SIGINT)
    shown = read_terminal(terminal)
    process.communicate(timeout=60)

    assert first == b"\r"
    assert process.returncode == 130
    assert shown.endswith("hadakv: interrupted\r\n")
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

    heading, *rows = table_rows(sessions)

    assert heading == "SESSION  TOKENS  LAYERS     SIZE  LAST USED"
    assert [row[:42] for row in rows] == [
        "a             7       0  2.0 KiB  " + rows[0][34:42],
        "longer        0       1  0 bytes  " + rows[1][34:42],
    ]
    assert list(table_rows([])) == []


def test_description_leaves_out_undecided_fields() -> None:
    described = describe(session_info("a", window=7))

    assert described.keys() == {"session", "as float16", "window", "tier", "created", "last used"}
    assert described["session"] == summarize(session_info("a")) == "a: 0 tokens, 0 layers, 0 bytes"
    assert described["window"] == "7 tokens"
