"""One session handle, used by several threads or tasks at once."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from hadakv_client import AsyncClient, Client
from support.services.scripted_server import scripted_server
from support.services.server_actions import K, describe, miss, store

__all__ = ["scripted_server"]  # a fixture
ONE_TOKEN = np.ones((2, 2, 1, 64), np.float16)


def test_threads_that_share_a_handle_lose_no_tokens(server: Any, session_id: str) -> None:
    def append_and_look(_: int) -> list[int]:
        positions = []
        for _ in range(10):
            positions.append(session.append(ONE_TOKEN, ONE_TOKEN, minimal=True).position)
            session.info()
        return positions

    with Client(server.url) as client, ThreadPoolExecutor(4) as threads:
        session = client.session(session_id)
        positions = [each for thread in threads.map(append_and_look, range(4)) for each in thread]

        assert sorted(positions) == list(range(40))
        assert session.info().length == 40


def test_tasks_that_share_a_handle_lose_no_tokens(server: Any, session_id: str) -> None:
    async def main() -> tuple[list[int], int]:
        async with AsyncClient(server.url) as client:
            session = client.session(session_id)
            appends = [session.append(ONE_TOKEN, ONE_TOKEN, minimal=True) for _ in range(40)]
            infos = [session.info() for _ in range(10)] if await session.append(ONE_TOKEN, ONE_TOKEN) else []
            results, *_ = await asyncio.gather(asyncio.gather(*appends), *infos)
            return [each.position for each in results], (await session.info()).length

    positions, length = asyncio.run(main())

    assert sorted(positions) == list(range(1, 41))
    assert length == 41


def test_cancelled_append_frees_its_turn(scripted_server: Any) -> None:
    async def main() -> int:
        async with AsyncClient(server.url) as client:
            session = client.session("a")
            first, second, third = (asyncio.create_task(session.append(K, K, minimal=True)) for _ in range(3))
            await asyncio.sleep(0)
            first.cancel()
            second.cancel()
            assert [await asyncio.gather(each, return_exceptions=True) for each in (first, second)]
            return (await third).position

    server = scripted_server(miss, store)

    assert asyncio.run(main()) == 0


def test_info_during_an_append_does_not_set_the_end(scripted_server: Any) -> None:
    def store_while_info_is_read(exchange: Any) -> None:
        exchange.body()
        infos.append(session.info())
        store(exchange)

    infos: list[Any] = []
    server = scripted_server(describe, store, store_while_info_is_read, describe, store)
    with Client(server.url, retries=0) as client:
        session = client.session("a")
        positions = [session.append(K, K, minimal=True).position for _ in range(3)]

    # The description says that the session is empty.
    assert [info.length for info in infos] == [0]
    assert positions == [0, 3, 6]


def test_progress_callback_cannot_change_the_session_of_its_call(server: Any, session_id: str, k: Any) -> None:
    with Client(server.url) as client:
        session = client.session(session_id)

        with pytest.raises(RuntimeError, match="a progress callback cannot change the session"):
            session._turns.run(lambda: session.append(k, k))
        assert session.append(k, k, minimal=True).position == 0


def test_handle_in_another_event_loop(server: Any, session_id: str, k: Any) -> None:
    async def append() -> int:
        return (await session.append(k, k, minimal=True)).position

    async def append_twice() -> list[int]:
        return list(await asyncio.gather(append(), append()))

    client = AsyncClient(server.url, retries=0)
    session = client.session(session_id)
    positions = [*asyncio.run(append_twice()), *asyncio.run(append_twice())]
    asyncio.run(client.aclose())

    assert sorted(positions) == [0, 5, 10, 15]
