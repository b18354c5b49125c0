"""Retries over real sockets: which calls are sent again after a broken connection, a timeout or a busy service."""

import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from hadakv_client import (
    Busy,
    ConnectionLost,
    InternalError,
    Retries,
    SessionNotFound,
    Timeout,
)
from support.services.server_actions import (
    FAST_RETRIES,
    LARGE,
    K,
    busy,
    hang_up,
    hang_up_in_the_body,
    hang_up_in_the_response,
    miss,
    problem_document,
    stall,
    store,
)


@pytest.mark.parametrize("action", [hang_up, hang_up_in_the_response, stall, busy])
def test_append_is_retried_at_the_same_position(connect: Any, scripted_server: Any, action: Any) -> None:
    server = scripted_server(action, store)
    client = connect(server.url, retries=FAST_RETRIES, timeout=httpx.Timeout(10, read=0.5))

    result = client.session("a").append(K, K, position=7, minimal=True)

    first, second = server.exchanges
    assert result.length == 10
    assert first.message() == second.message()
    assert second.message()["position"] == 7


def test_interrupted_upload_is_sent_again_from_the_start(connect: Any, scripted_server: Any) -> None:
    server = scripted_server(hang_up_in_the_body, store)
    client = connect(server.url, retries=FAST_RETRIES)

    client.session("a").append(LARGE, LARGE, position=0, minimal=True)

    assert server.exchanges[1].message()["v"]["data"] == LARGE.tobytes()


@pytest.mark.parametrize(("action", "error"), [(hang_up, ConnectionLost), (stall, Timeout)])
def test_append_at_end_is_not_retried_after_a_broken_connection(
    connect: Any, scripted_server: Any, action: Any, error: Any
) -> None:
    server = scripted_server(action, store)
    client = connect(server.url, retries=FAST_RETRIES, timeout=httpx.Timeout(10, read=0.5))

    with pytest.raises(error, match=f"POST /sessions/a/kv at {server.url}: "):
        client.session("a").append(K, K, position="end")

    assert len(server.exchanges) == 1


def test_append_at_end_is_retried_if_the_service_is_busy(connect: Any, scripted_server: Any) -> None:
    server = scripted_server(busy, busy, store)
    client = connect(server.url, retries=FAST_RETRIES)

    client.session("a").append(K, K, position="end", minimal=True)

    assert len(server.exchanges) == 3


def test_busy_is_raised_after_the_last_retry(connect: Any, scripted_server: Any) -> None:
    server = scripted_server(busy, busy, busy, busy, store)
    client = connect(server.url, retries=FAST_RETRIES)

    with pytest.raises(Busy, match="busy"):
        client.session("a").append(K, K, position=0)

    assert len(server.exchanges) == 4


def test_internal_error_is_not_retried(connect: Any, scripted_server: Any) -> None:
    server = scripted_server(lambda exchange: exchange.respond(500, problem_document("internal-error")))
    client = connect(server.url, retries=FAST_RETRIES)

    with pytest.raises(InternalError):
        client.session("a").info()

    assert len(server.exchanges) == 1


def test_refused_connection_is_retried(connect: Any, scripted_server: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    servers = []

    def start_server() -> float:
        servers.append(scripted_server(store, port=port))
        return 0.0

    client = connect(f"http://127.0.0.1:{port}", retries=Retries(1, 0.001, random=start_server))

    client.session("a").append(K, K, position="end", minimal=True)

    assert servers[0].calls == ["POST /sessions/a/kv"]


def test_delete_retry_after_lost_response_accepts_404(connect: Any, scripted_server: Any) -> None:
    server = scripted_server(hang_up, miss)

    connect(server.url, retries=FAST_RETRIES).session("a").delete()

    assert server.calls == ["DELETE /sessions/a"] * 2


def test_delete_retry_after_busy_raises_session_not_found(connect: Any, scripted_server: Any) -> None:
    server = scripted_server(busy, miss)

    with pytest.raises(SessionNotFound):
        connect(server.url, retries=FAST_RETRIES).session("a").delete()
