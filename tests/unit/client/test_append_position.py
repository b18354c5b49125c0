"""Position of an append without one: when the handle asks the service for the end of the session."""

import asyncio
from typing import Any

import pytest

from hadakv_client import (
    AsyncClient,
    ConnectionLost,
    PositionConflict,
)
from support.services.server_actions import (
    INFO,
    K,
    describe,
    hang_up,
    miss,
    problem_document,
    stall,
    store,
)


def test_handle_asks_for_the_end_once(connect: Any, scripted_server: Any) -> None:
    server = scripted_server(miss, store, store, store)
    session = connect(server.url).session("a")

    for _ in range(3):
        session.append(K, K, minimal=True)

    assert server.calls == ["GET /sessions/a"] + ["POST /sessions/a/kv"] * 3
    assert [exchange.message()["position"] for exchange in server.exchanges[1:]] == [0, 3, 6]


def test_create_tells_the_handle_the_end(connect: Any, scripted_server: Any) -> None:
    server = scripted_server(describe, store)
    session = connect(server.url).session("a")

    session.create()
    session.append(K, K, minimal=True)

    assert server.calls == ["PUT /sessions/a", "POST /sessions/a/kv"]


def test_handle_asks_again_after_a_conflict(connect: Any, scripted_server: Any) -> None:
    def conflict(exchange: Any) -> None:
        exchange.body()
        exchange.respond(409, problem_document("position-conflict", length=6))

    def describe_six_tokens(exchange: Any) -> None:
        exchange.respond(200, INFO | {"layers": [{"layer": layer, "start": 0, "length": 6} for layer in range(2)]})

    server = scripted_server(miss, conflict, describe_six_tokens, store)
    session = connect(server.url).session("a")

    with pytest.raises(PositionConflict) as raised:
        session.append(K, K)
    result = session.append(K, K, minimal=True)

    assert raised.value.length == 6
    assert result.position == 6


def test_handle_asks_again_after_a_lost_connection(connect: Any, scripted_server: Any) -> None:
    server = scripted_server(miss, hang_up, miss, store)
    session = connect(server.url, retries=0).session("a")

    with pytest.raises(ConnectionLost):
        session.append(K, K)
    session.append(K, K, minimal=True)

    assert server.calls == ["GET /sessions/a", "POST /sessions/a/kv"] * 2


def test_handle_asks_again_after_a_cancelled_append(scripted_server: Any) -> None:
    server = scripted_server(miss, stall, miss, store)

    async def cancel_and_append() -> None:
        async with AsyncClient(server.url) as client:
            session = client.session("a")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(session.append(K, K), 0.3)
            await session.append(K, K, minimal=True)

    asyncio.run(cancel_and_append())

    assert server.calls == ["GET /sessions/a", "POST /sessions/a/kv"] * 2


def test_handle_does_not_ask_if_the_position_is_given(connect: Any, scripted_server: Any) -> None:
    server = scripted_server(store, store)
    session = connect(server.url).session("a")

    session.append(K, K, position=0, minimal=True)
    session.append(K, K, position=3, minimal=True)

    assert server.calls == ["POST /sessions/a/kv"] * 2
