"""Both clients behind one interface, so that every test of one client also tests the other."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from hadakv_client import AsyncClient, AsyncSession, Client


class BlockingProxy:
    """Asynchronous client or session whose methods block until they have a result."""

    def __init__(self, inner: Any, runner: asyncio.Runner) -> None:
        self._inner = inner
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        return (
            (lambda *args, **options: self._finish(attribute(*args, **options))) if callable(attribute) else attribute
        )

    def _finish(self, result: Any) -> Any:
        if inspect.isasyncgen(result):
            return self._runner.run(_collect(result))
        if inspect.iscoroutine(result):
            result = self._runner.run(result)
        return BlockingProxy(result, self._runner) if isinstance(result, AsyncSession) else result


async def _collect(items: Any) -> list[Any]:
    return [item async for item in items]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Return a function that creates clients of one of the two kinds. They are closed after the test."""
    with ExitStack() as stack:

        def connect_sync(*args: Any, **options: Any) -> Client:
            return stack.enter_context(Client(*args, **options))

        def connect_async(*args: Any, **options: Any) -> BlockingProxy:
            runner = stack.enter_context(asyncio.Runner())
            client = AsyncClient(*args, **options)
            stack.callback(lambda: runner.run(client.aclose()))
            return BlockingProxy(client, runner)

        yield connect_sync if request.param == "sync" else connect_async
