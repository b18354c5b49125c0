"""The one thread that owns the device, and the batcher in front of it.

Everything that touches the store or the backend runs here, in the order it was asked for. What waits together is
taken together: all its encoding goes to the backend in one call, then each job finishes by itself.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from hadakv_kernels import Backend, Encoded, Stream
from hadakv_service.errors import Busy, InsufficientStorage

# As many as are encoded in one call; more would make the first of them wait for the last.
BATCH = 32

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Job(Protocol[T_co]):
    """Work for the device. Jobs of one key never share a batch: each begins where the one before it ended."""

    @property
    def key(self) -> Hashable:
        """What the job works on; None is nothing it shares with others."""
        ...

    def begin(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        """Check, reserve, and name what is to be encoded. `batch` has the keys of all jobs under way."""
        ...

    def finish(self, encoded: Sequence[Encoded]) -> T_co:
        """Take what was encoded, and answer."""
        ...

    def abandon(self) -> None:
        """Undo `begin`: encoding or finishing failed."""
        ...


class Call(Generic[T]):
    """A job that encodes nothing."""

    def __init__(self, work: Callable[[], T], key: Hashable = None) -> None:
        self.key = key
        self._work = work

    def begin(self, batch: frozenset[Hashable]) -> Sequence[Stream]:  # noqa: ARG002 - a call never evicts
        """Nothing to encode."""
        return ()

    def finish(self, encoded: Sequence[Encoded]) -> T:  # noqa: ARG002 - nothing was encoded
        """Do the work."""
        return self._work()

    def abandon(self) -> None:
        """Nothing to undo."""


class _Waiting:
    """A job, the future its caller awaits, and what became of it."""

    __slots__ = ("error", "future", "job", "result", "streams")

    def __init__(self, job: Job[Any], future: "asyncio.Future[Any]") -> None:
        self.job = job
        self.future = future
        self.streams: Sequence[Stream] = ()
        self.result: Any = None
        self.error: Exception | None = None


class Device:
    """Runs jobs on its own thread.

    Args:
        backend: used by that thread alone.
        limit: jobs that may wait or run at a time.
    """

    def __init__(self, backend: Backend, limit: int) -> None:
        self.backend = backend
        self._limit = limit
        self._depth = 0
        self._inbox: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="hadakv-device", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to take jobs, answering on that event loop."""
        self._events = loop
        self._thread.start()

    def stop(self) -> None:
        """Finish what waits, then end the thread."""
        self._inbox.put(None)
        self._thread.join()

    async def run(self, job: Job[T]) -> T:
        """Do a job and give its answer.

        Raises:
            Busy: as many jobs wait as may.
        """
        if self._depth >= self._limit:
            raise Busy(f"{self._limit} requests are waiting for the device.")
        self._depth += 1
        future: asyncio.Future[T] = self._events.create_future()
        self._inbox.put(_Waiting(job, future))
        return await future

    async def call(self, work: Callable[[], T], key: Hashable = None) -> T:
        """Run a function on the device's thread, after all jobs of that key that were asked for before."""
        return await self.run(Call(work, key))

    def _loop(self) -> None:
        backlog: deque[_Waiting] = deque()
        open_ = True
        while open_ or backlog:
            open_ = self._drain(backlog, wait=not backlog) and open_
            batch = _independent(backlog)
            self._work(batch)
            for waiting in batch:
                # Beside others it could not evict them; alone it can.
                if len(batch) > 1 and isinstance(waiting.error, InsufficientStorage):
                    waiting.error = None
                    self._work([waiting])
            if batch:
                self._events.call_soon_threadsafe(self._answer, batch)

    def _drain(self, backlog: deque[_Waiting], *, wait: bool) -> bool:
        """Move what has arrived to the backlog; False once the device is to stop."""
        while wait or not self._inbox.empty():
            wait = False
            item = self._inbox.get()
            if item is None:
                return False
            backlog.append(item)
        return True

    def _work(self, batch: Sequence[_Waiting]) -> None:
        keys = frozenset(waiting.job.key for waiting in batch if waiting.job.key is not None)
        for waiting in batch:
            waiting.streams = _guarded(waiting, waiting.job.begin, keys) or ()
        alive = [waiting for waiting in batch if waiting.error is None]
        encoded = self._encode(alive)
        for waiting in alive:
            if waiting.error is None:
                mine = [next(encoded) for _ in waiting.streams]
                waiting.result = _guarded(waiting, waiting.job.finish, mine)
            if waiting.error is not None:
                waiting.job.abandon()

    def _encode(self, alive: Sequence[_Waiting]) -> Iterator[Encoded]:
        streams = [stream for waiting in alive for stream in waiting.streams]
        try:
            return iter(self.backend.encode(streams) if streams else ())
        except Exception as error:
            if len(alive) == 1:
                alive[0].error = error
                return iter(())
            # Only who caused it fails: once more, one by one.
            return chain.from_iterable([list(self._encode([waiting])) for waiting in alive])

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        self._depth -= len(batch)
        for waiting in batch:
            if waiting.future.done():
                continue
            if waiting.error is not None:
                waiting.future.set_exception(waiting.error)
            else:
                waiting.future.set_result(waiting.result)


def _guarded(waiting: _Waiting, step: Callable[[Any], T], argument: Any) -> T | None:
    try:
        return step(argument)
    except Exception as error:
        waiting.error = error
        return None


def _independent(backlog: deque[_Waiting]) -> list[_Waiting]:
    """Take up to a batch of jobs, no two of one key, leaving the others in order."""
    batch: list[_Waiting] = []
    seen: set[Hashable] = set()
    left: list[_Waiting] = []
    while backlog and len(batch) < BATCH:
        waiting = backlog.popleft()
        key = waiting.job.key
        if key is not None and key in seen:
            left.append(waiting)
            continue
        seen.add(key)
        batch.append(waiting)
    backlog.extendleft(reversed(left))
    return batch
