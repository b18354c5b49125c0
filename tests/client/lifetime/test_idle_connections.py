"""Connections that no call uses: how many are kept, and for how long."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from hadakv_client import Client
from hadakv_client.http.connections import pool, transports
from support.processes import open_sockets


def test_connection_is_reused(server: Any) -> None:
    before = open_sockets()
    with Client(server.url) as client:
        assert client.healthy()
        first = open_sockets() - before

        assert client.healthy()
        assert open_sockets() - before == first
        assert len(first) == 1


def test_surplus_connections_are_closed(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MAX_IDLE", 2)
    before, together = open_sockets(), Barrier(6)

    def call(_: int) -> bool:
        together.wait()
        return client.healthy()

    with Client(server.url) as client, ThreadPoolExecutor(6) as threads:
        assert all(threads.map(call, range(6)))
        assert 1 <= len(open_sockets() - before) <= 2


def test_expired_connection_is_closed(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "KEEPALIVE_SECONDS", -1.0)
    before = open_sockets()

    with Client(server.url) as client:
        assert all(client.healthy() for _ in range(5))
        assert len(open_sockets() - before) <= 1


def test_closed_client_sends_nothing(server: Any) -> None:
    before = open_sockets()
    with Client(server.url) as client:
        assert client.healthy()

    assert open_sockets() <= before
    with pytest.raises(RuntimeError, match="closed"):
        client.healthy()
