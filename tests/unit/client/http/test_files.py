"""Session files when the connection breaks or the response is not a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hadakv_client import ConnectionLost, ProtocolError, Retries
from support.services.server_actions import describe, hang_up

HEADERS = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 10\r\n\r\n"


def test_broken_export_keeps_the_previous_file(
    connect: Callable[..., Any], scripted_server: Callable[..., Any], tmp_path: Path
) -> None:
    def send_half_and_hang_up(exchange: Any) -> None:
        exchange.send(HEADERS + b"half ")
        exchange.hang_up()

    file = tmp_path / "file"
    file.write_text("something else")
    server = scripted_server(*[send_half_and_hang_up] * 3)

    with pytest.raises(ConnectionLost):
        connect(server.url, retries=Retries(2, initial_backoff_seconds=0.0)).session("a").export(file)

    assert server.calls == ["GET /sessions/a/export"] * 3
    assert file.read_text() == "something else"
    assert list(tmp_path.iterdir()) == [file]


def test_export_is_retried_from_the_start(
    connect: Callable[..., Any], scripted_server: Callable[..., Any], tmp_path: Path
) -> None:
    def send_half_and_hang_up(exchange: Any) -> None:
        exchange.send(HEADERS + b"wrong")
        exchange.hang_up()

    server = scripted_server(send_half_and_hang_up, lambda exchange: exchange.send(HEADERS + b"0123456789"))

    connect(server.url, retries=Retries(2, initial_backoff_seconds=0.0)).session("a").export(tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_import_is_not_retried_after_a_lost_response(
    connect: Callable[..., Any], scripted_server: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    server = scripted_server(*[hang_up] * 3)

    with pytest.raises(ConnectionLost):
        connect(server.url).import_session(tmp_path / "file", "a")

    assert server.calls == ["POST /sessions/a/import"]
    assert server.exchanges[0].headers["content-length"] == "7"


@pytest.mark.parametrize("session", ["a", "A-Z.0_9:"])
def test_import_without_id_reads_it_from_the_file(
    connect: Callable[..., Any], scripted_server: Callable[..., Any], tmp_path: Path, session: str
) -> None:
    header = json.dumps({"__metadata__": {"format": "hadakv-session", "session": session}}).encode()
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header)
    server = scripted_server(describe)

    imported = connect(server.url).import_session(tmp_path / "file")

    assert imported.id == session
    assert server.calls == [f"POST /sessions/{session}/import"]


@pytest.mark.parametrize("kind", ["text/html", "application/json"])
def test_response_that_is_not_a_file_is_not_written(
    connect: Callable[..., Any], scripted_server: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    page = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: 6\r\n\r\n<html>" % kind.encode()
    server = scripted_server(lambda exchange: exchange.send(page))

    with pytest.raises(ProtocolError, match="expected a file, not"):
        connect(server.url).session("a").export(tmp_path / "file")

    assert list(tmp_path.iterdir()) == []
