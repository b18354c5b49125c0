"""Asynchronous calls that are cancelled at random moments."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import trustme

from hadakv_client import AsyncClient, Client, SessionNotFound, Timeout
from hadakv_client.http.connections import transports
from hadakv_service.testing import running_service
from support.processes import open_sockets
from support.services.scripted_server import scripted_server
from support.services.server_actions import stall

__all__ = ["scripted_server"]  # a fixture
Cancel = Callable[[Awaitable[Any], float], Awaitable[object]]
LONGEST_SECONDS = 0.01


async def wait_for(call: Awaitable[Any], seconds: float) -> object:
    with suppress(TimeoutError):
        return await asyncio.wait_for(call, seconds)
    return None


async def timeout(call: Awaitable[Any], seconds: float) -> object:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await call
    return None


async def cancel(call: Awaitable[Any], seconds: float, times: int = 1) -> object:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(seconds)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    (result,) = await asyncio.gather(task, return_exceptions=True)
    return None if isinstance(result, asyncio.CancelledError) else result


async def cancel_twice(call: Awaitable[Any], seconds: float) -> object:
    return await cancel(call, seconds, 2)


async def fail_in_a_task_group(call: Awaitable[Any], seconds: float) -> object:
    async def fail() -> None:
        await asyncio.sleep(seconds)
        raise LookupError

    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(as_coroutine(call))
            group.create_task(fail())
    return None


async def cancel_a_gather(call: Awaitable[Any], seconds: float) -> object:
    return await cancel(asyncio.gather(call, asyncio.sleep(1)), seconds)


async def as_coroutine(call: Awaitable[Any]) -> Any:
    return await call


WAYS: list[Cancel] = [wait_for, timeout, cancel, cancel_twice, fail_in_a_task_group, cancel_a_gather]


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Start a service with TLS. Return its URL and the file of its authority."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "served")
    authority.cert_pem.write_to_path(folder / "own")
    with running_service("--tls-cert", str(folder / "served")) as service:
        yield service.url, folder / "own"


async def cancel_calls(way: Cancel, calls: int, *args: Any, **options: Any) -> dict[str, int]:
    """Cancel reads and appends of one session, four at a time. Make one more call. Return what was counted."""
    before, moments = open_sockets(), random.Random(1)
    k = np.ones((4, 4, 64, 64), np.float16)
    async with AsyncClient(*args, timeout=20, retries=0, **options) as client:
        session = client.session("cancelled", codec={"kind": "float16"})
        await session.append(k, k, position=0)
        cancelled = 0
        for first in range(0, calls, 4):
            several = [
                session.append(k, k, position=0) if number % 4 == 3 else session.read(form="float32")
                for number in range(first, first + 4)
            ]
            cancelled += (
                await asyncio.gather(*(way(each, moments.random() * LONGEST_SECONDS) for each in several))
            ).count(None)
        # Removing a socket from the loop takes one pass of the loop.
        await asyncio.sleep(0)
        still_open = len(open_sockets() - before)
        await session.delete()
    await asyncio.sleep(0)
    return {"calls": calls, "cancelled": cancelled, "open": still_open, "left": len(open_sockets() - before)}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_cancelled_calls_leave_no_connection(server: Any, way: Cancel) -> None:
    counts = asyncio.run(cancel_calls(way, 80, server.url))

    assert counts["cancelled"] > 0
    assert counts["open"] <= 4
    assert counts["left"] == 0


@pytest.mark.parametrize("way", [cancel, cancel_twice], ids=lambda way: way.__name__)
def test_cancelled_calls_leave_no_tls_connection(tls_server: tuple[str, Path], way: Cancel) -> None:
    url, ca_file = tls_server

    counts = asyncio.run(cancel_calls(way, 40, url, ca_file=ca_file))

    assert counts["cancelled"] > 0
    assert counts["open"] <= 4
    assert counts["left"] == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", [cancel, cancel_twice], ids=lambda way: way.__name__)
def test_two_thousand_cancelled_calls(server: Any, way: Cancel) -> None:
    counts = asyncio.run(cancel_calls(way, 2000, server.url))
    print(counts)  # noqa: T201 - for `pytest -s`

    assert counts["cancelled"] > 100
    assert counts["open"] <= 4
    assert counts["left"] == 0


def test_calls_wait_for_a_connection(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "MAX_CONNECTIONS", 2)

    async def main() -> int:
        before = open_sockets()
        async with AsyncClient(server.url, retries=0) as client:
            calls = [asyncio.create_task(client.ready()) for _ in range(30)]
            for each in calls[::3]:
                await asyncio.sleep(0)
                each.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [each for each in results if not isinstance(each, asyncio.CancelledError)] == [True] * 20
            return len(open_sockets() - before)

    assert asyncio.run(main()) == 2


def test_call_without_a_free_connection_times_out_unsent(scripted_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "MAX_CONNECTIONS", 1)

    async def main() -> None:
        async with AsyncClient(server.url, retries=0, timeout=httpx.Timeout(20, pool=0.01)) as client:
            stalled = asyncio.create_task(client.session("a").info())
            await asyncio.sleep(0)
            with pytest.raises(Timeout, match="all 1 connections are in use") as raised:
                await client.session("a").info()
            stalled.cancel()
            assert not raised.value.sent

    server = scripted_server(stall)

    asyncio.run(main())


def test_client_in_a_second_event_loop(server: Any, session_id: str, k: Any) -> None:
    async def read() -> int:
        return (await client.session(session_id).info()).length

    before = open_sockets()
    with Client(server.url) as other:
        other.session(session_id).append(k, k)
    client = AsyncClient(server.url, retries=0)

    assert [asyncio.run(read()) for _ in range(3)] == [5, 5, 5]
    assert len(open_sockets() - before) == 1
    asyncio.run(client.aclose())
    assert open_sockets() <= before


def test_cancelled_export_keeps_the_previous_file(server: Any, session_id: str, tmp_path: Path) -> None:
    k = np.ones((8, 4, 2048, 64), np.float16)
    (tmp_path / "file").write_bytes(b"previous")
    before = open_sockets()

    async def main() -> int:
        async with AsyncClient(server.url, retries=0) as client:
            session = client.session(session_id, {"kind": "float16"})
            await session.append(k, k, minimal=True)
            loop = asyncio.get_running_loop()
            export = loop.create_task(
                session.export(tmp_path / "file", lambda *_: loop.call_soon_threadsafe(export.cancel))
            )
            with pytest.raises(asyncio.CancelledError):
                await export
            return (await session.info()).length

    assert asyncio.run(main()) == 2048
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"previous"
    assert open_sockets() <= before


def test_cancelled_import_creates_nothing(server: Any, session_id: str, tmp_path: Path) -> None:
    k = np.ones((8, 4, 4096, 64), np.float16)
    before = open_sockets()

    async def main() -> None:
        async with AsyncClient(server.url, retries=0) as client:
            session = client.session(session_id, {"kind": "float16"})
            await session.append(k, k, minimal=True)
            await session.export(tmp_path / "file")
            loop = asyncio.get_running_loop()
            new = f"{session_id}-new"
            task = loop.create_task(
                client.import_session(tmp_path / "file", new, lambda *_: loop.call_soon_threadsafe(task.cancel))
            )
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(SessionNotFound):
                await client.session(new).info()
            assert (await client.import_session(tmp_path / "file", new)).id == new

    asyncio.run(main())
    assert open_sockets() <= before
