"""SendingBudget: memory for responses that are being sent; Share: the part of one response."""

import asyncio
from collections import deque
from collections.abc import Callable

from hadakv_service.errors import Busy
from hadakv_service.wire.serialization import LARGE_TENSOR_NBYTES

# A response waits this long for memory before it is rejected.
WAIT_SECONDS = 10.0


class Share:
    """Memory counted for one response until it is sent, or given up.

    Args:
        budget: budget that counts the bytes.
        nbytes: counted bytes.
    """

    __slots__ = ("_budget", "_is_open", "nbytes")

    def __init__(self, budget: "SendingBudget", nbytes: int) -> None:
        self._budget = budget
        self._is_open = True
        self.nbytes = nbytes

    def shrink(self, nbytes: int) -> None:
        """Count at most these bytes from now on."""
        if self._is_open and nbytes < self.nbytes:
            self._budget._give_back(self.nbytes - nbytes, shares=0)
            self.nbytes = nbytes

    def release(self) -> None:
        """Give all bytes back. Further calls do nothing."""
        if self._is_open:
            self._is_open = False
            self._budget._give_back(self.nbytes, shares=1)


class SendingBudget:
    """Counter of the memory of responses under way. Only the thread of the event loop uses it.

    A response takes one share before it begins, and never waits for more while it has one, so responses cannot block
    each other forever. Waiting responses get their shares in order of arrival. A response that needs more than the
    limit gets its share when there is no other one.

    Args:
        limit: bytes that all responses together may take.
        held: returns the bytes of stored pages that only responses keep in memory. They count too.

    Attributes:
        limit: bytes that all responses together may take.
        rejected: number of responses that were rejected because there was no memory for them in time.
    """

    def __init__(self, limit: int, held: Callable[[], int] = lambda: 0) -> None:
        self.limit = limit
        self.rejected = 0
        self._held = held
        self._nbytes = self._shares = 0
        self._waiting: deque[tuple[int, asyncio.Future[Share]]] = deque()

    @property
    def used(self) -> int:
        """Bytes that responses under way take."""
        return self._nbytes + self._held()

    @property
    def waiting(self) -> int:
        """Number of responses that wait for memory."""
        return len(self._waiting)

    def try_acquire(self, nbytes: int) -> Share | None:
        """Return a share if there is memory for it and no other response waits, else None."""
        return None if self._waiting or not self._fits(nbytes) else self._take(nbytes)

    async def acquire(self, nbytes: int) -> Share:
        """Return a share. Wait for it if there is no memory.

        Raises:
            Busy: there was no memory in time.
        """
        share = self.try_acquire(nbytes)
        return await self._wait(nbytes) if share is None else share

    async def acquire_for(self, nbytes: int) -> Share | None:
        """Return the share of a response of that size, as `acquire` does; None if it is small, which needs none."""
        return await self.acquire(nbytes) if nbytes >= LARGE_TENSOR_NBYTES else None

    async def _wait(self, nbytes: int) -> Share:
        loop = asyncio.get_running_loop()
        waiter: tuple[int, asyncio.Future[Share]] = nbytes, loop.create_future()
        future = waiter[1]
        self._waiting.append(waiter)
        timer = loop.call_later(WAIT_SECONDS, self._reject, waiter)
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._waiting.remove(waiter)
                self._grant()
            elif future.exception() is None:
                # The share was granted and the request cancelled at the same time.
                future.result().release()
            raise
        finally:
            timer.cancel()

    def _reject(self, waiter: "tuple[int, asyncio.Future[Share]]") -> None:
        if waiter[1].done():
            return
        self._waiting.remove(waiter)
        self.rejected += 1
        waiter[1].set_exception(Busy("Responses being sent use all the memory reserved for them. Retry later."))
        self._grant()

    def _fits(self, nbytes: int) -> bool:
        return not self._shares or self.used + nbytes <= self.limit

    def _take(self, nbytes: int) -> Share:
        self._nbytes += nbytes
        self._shares += 1
        return Share(self, nbytes)

    def _give_back(self, nbytes: int, shares: int) -> None:
        self._nbytes -= nbytes
        self._shares -= shares
        self._grant()

    def _grant(self) -> None:
        """Give shares to the responses that wait for longest."""
        while self._waiting and (self._waiting[0][1].done() or self._fits(self._waiting[0][0])):
            nbytes, future = self._waiting[0]
            if future.done():
                # It was cancelled; `_wait` removes it and continues here.
                return
            self._waiting.popleft()
            future.set_result(self._take(nbytes))
