"""Messages of calls without a response: what is wrong, and what to do."""

import socket
from pathlib import Path
from typing import Any

import pytest

from hadakv_client import ConnectionLost


def test_refused_connection_says_how_to_start_a_service(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"127.0.0.1:{unused.getsockname()[1]}"

    with pytest.raises(ConnectionLost) as lost:
        connect(address, retries=0).session("a").info()

    assert str(lost.value).startswith(f"No hadakv service answers at http://{address} (connection refused). Start ")
    assert "`hadakv serve`" in str(lost.value)
    assert "HADAKV_URL" in str(lost.value)


def test_missing_socket_is_named(connect: Any, tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost, match=f"No hadakv service answers at unix:{tmp_path}/s .no such socket"):
        connect(f"unix:{tmp_path}/s", retries=0).session("a").info()


def test_disconnection_without_a_response_suggests_tls(connect: Any, scripted_server: Any) -> None:
    server = scripted_server()

    with pytest.raises(ConnectionLost, match=r"GET /sessions/a at http://.* If the service uses TLS, .* https://"):
        connect(server.url, retries=0).session("a").info()


def test_reset_of_a_cut_response_does_not_suggest_tls(connect: Any, scripted_server: Any) -> None:
    def cut(exchange: Any) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe")
        exchange.hang_up()

    server = scripted_server(cut)

    with pytest.raises(ConnectionLost) as lost:
        connect(server.url, retries=0).session("a").info()
    assert "TLS" not in str(lost.value)
