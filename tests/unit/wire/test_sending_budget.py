"""Memory for responses: shares, waiting in order of arrival, rejection, cancellation."""

import asyncio

import pytest

from hadakv_service.errors import Busy
from hadakv_service.wire import sending_budget
from hadakv_service.wire.sending_budget import SendingBudget, Share


async def let_run() -> None:
    """Let every other task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_share_counts_until_it_is_released() -> None:
    budget = SendingBudget(100)

    share = budget.try_acquire(60)

    assert share is not None
    assert (budget.used, budget.try_acquire(41)) == (60, None)
    share.shrink(50)
    share.shrink(70)
    assert budget.used == 50
    share.release()
    share.release()
    share.shrink(1)
    assert budget.used == 0


def test_pages_that_only_responses_keep_count() -> None:
    held = 30
    budget = SendingBudget(100, lambda: held)
    budget.try_acquire(10)

    assert budget.used == 40
    assert budget.try_acquire(61) is None
    assert budget.try_acquire(60) is not None


def test_response_above_the_limit_gets_its_share_alone() -> None:
    budget = SendingBudget(100)

    alone = budget.try_acquire(1000)

    assert alone is not None
    assert budget.try_acquire(1) is None
    alone.release()
    assert budget.try_acquire(1) is not None
    assert budget.try_acquire(1000) is None


async def take(budget: SendingBudget, nbytes: int, granted: list[tuple[int, Share]]) -> None:
    granted.append((nbytes, await budget.acquire(nbytes)))


def test_waiting_responses_get_shares_in_order() -> None:
    async def run() -> None:
        budget, granted = SendingBudget(100), list[tuple[int, Share]]()
        first = await budget.acquire(90)
        tasks = [asyncio.create_task(take(budget, nbytes, granted)) for nbytes in (200, 5, 6)]
        await let_run()
        # The small ones would fit, but a large one waits already.
        assert (granted, budget.waiting, budget.try_acquire(1)) == ([], 3, None)

        first.release()
        await let_run()
        assert [nbytes for nbytes, _ in granted] == [200]
        granted[0][1].release()
        await asyncio.gather(*tasks)

        assert [nbytes for nbytes, _ in granted] == [200, 5, 6]
        assert (budget.used, budget.waiting) == (11, 0)

    asyncio.run(run())


def test_response_without_memory_in_time_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending_budget, "WAIT_SECONDS", 0.001)

    async def run() -> None:
        budget = SendingBudget(100)
        first = await budget.acquire(100)
        with pytest.raises(Busy) as rejected:
            await budget.acquire(1)
        assert rejected.value.headers["Retry-After"] == "1"
        assert (budget.rejected, budget.waiting, budget.used) == (1, 0, 100)
        first.release()
        assert budget.try_acquire(100) is not None

    asyncio.run(run())


def test_cancelled_response_lets_the_next_one_go_on() -> None:
    async def run() -> None:
        budget, granted = SendingBudget(100), list[tuple[int, Share]]()
        await budget.acquire(90)
        large, small = (asyncio.create_task(take(budget, nbytes, granted)) for nbytes in (50, 10))
        await let_run()

        large.cancel()
        await small

        assert [nbytes for nbytes, _ in granted] == [10]
        assert (budget.used, budget.waiting) == (100, 0)

    asyncio.run(run())


def test_response_cancelled_as_it_gets_its_share_releases_it() -> None:
    async def run() -> None:
        budget, granted = SendingBudget(100), list[tuple[int, Share]]()
        first = await budget.acquire(100)
        waiting = asyncio.create_task(take(budget, 100, granted))
        await let_run()

        first.release()
        waiting.cancel()
        await let_run()

        assert (granted, budget.used, budget.waiting) == ([], 0, 0)

    asyncio.run(run())
