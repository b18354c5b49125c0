"""The one thread that owns the device, and the batcher in front of it.

Everything that touches the store or the backend runs here, in the order it was asked for. What waits together is
taken together: all its encoding goes to the backend in one call, then each job finishes by itself. A long job goes in
steps, between which those that came meanwhile have their turn.
"""

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from itertools import chain
from queue import SimpleQueue
from time import perf_counter
from typing import Any, TypeVar

from hadakv_kernels import Backend, Encoded, Stream
from hadakv_service.device.chunks import encode_chunked
from hadakv_service.device.jobs import ChunkedJob, FunctionJob, Job
from hadakv_service.errors import Busy, InsufficientStorage
from hadakv_service.observability.device_timings import BatchTimings, DeviceObserver, NullObserver
from hadakv_service.observability.request_record import current

log = logging.getLogger(__name__)

# As many as are encoded in one call; more would make the first of them wait for the last.
MAX_BATCH_JOBS = 32
# Bytes to encode from which a job goes in steps.
CHUNKED_JOB_NBYTES = 4 << 20
_DONE = object()

T = TypeVar("T")


class _QueuedJob:
    """A job, the future its caller awaits if there is one, the request it is for, and what became of it."""

    __slots__ = ("error", "future", "job", "note", "request", "result", "run_alone", "streams")

    def __init__(self, job: Job[Any], future: "asyncio.Future[Any] | None", note: Any) -> None:
        self.job = job
        self.future = future
        self.note = note
        # So that what is logged while it is worked on names it.
        self.request = current.get()
        # Whether there was no room for it beside others, so that it is tried once more with nobody beside it.
        self.run_alone = False
        self.streams: Sequence[Stream] = ()
        self.result: Any = None
        self.error: Exception | None = None


class DeviceExecutor:
    """Runs jobs on its own thread.

    Args:
        backend: used by that thread alone.
        limit: jobs that may wait or run at a time.
        observer: is told what was done.
        settle: called after each batch, before anybody is answered; gives the keys of jobs that failed after all.

    Attributes:
        limit: the same.
        depth: how many wait or run.
    """

    def __init__(
        self,
        backend: Backend,
        limit: int,
        observer: DeviceObserver | None = None,
        settle: Callable[[], Mapping[Any, Exception]] = dict[Any, Exception],
    ) -> None:
        self.backend = backend
        self.depth = 0
        self.limit = limit
        self._settle = settle
        self._observer = observer or NullObserver()
        self._inbox: SimpleQueue[_QueuedJob | None] = SimpleQueue()
        self._long: _QueuedJob | None = None
        self._thread = threading.Thread(target=self._loop, name="hadakv-device", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to take jobs, answering on that event loop."""
        self._events = loop
        self._thread.start()

    def stop(self, last: Callable[[], object] | None = None) -> None:
        """Finish what waits, do one thing more, then end the thread."""
        if last:
            self._inbox.put(_QueuedJob(FunctionJob(last), None, self._observer.on_enqueue()))
        self._inbox.put(None)
        self._thread.join()

    async def run(self, job: Job[T]) -> T:
        """Do a job and give its answer.

        Raises:
            Busy: as many jobs wait as may.
        """
        if self.depth >= self.limit:
            raise Busy(f"{self.limit} requests are waiting for the device.")
        return await self._enqueue(job)

    async def call(self, work: Callable[[], T], key: Hashable = None) -> T:
        """Run a function on the device's thread, after all jobs of that key that were asked for before."""
        return await self.run(FunctionJob(work, key))

    async def call_unbounded(self, work: Callable[[], T]) -> T:
        """Run one function more for a request whose answer has begun: it is too late to say that there are too many."""
        return await self._enqueue(FunctionJob(work))

    def _enqueue(self, job: Job[T]) -> "asyncio.Future[T]":
        self.depth += 1
        future: asyncio.Future[T] = self._events.create_future()
        self._inbox.put(_QueuedJob(job, future, self._observer.on_enqueue()))
        return future

    def _loop(self) -> None:
        backlog: deque[_QueuedJob] = deque()
        open_ = True
        while open_ or backlog or self._long:
            open_ = self._receive(backlog, wait=not (backlog or self._long)) and open_
            try:
                self._run_once(backlog)
            except BaseException:
                # Whoever waits would wait for ever, and what is on disk is whole at any moment.
                log.critical("the device's thread has failed; ending now", exc_info=True)
                os._exit(70)

    def _run_once(self, backlog: deque[_QueuedJob]) -> None:
        """One batch, and one step of the long job."""
        batch, long = _select_batch(backlog, self._long)
        self._run_batch(batch, backlog)
        if long:
            assert isinstance(long.job, ChunkedJob)
            self._long, self._steps = long, self._run_chunked(long, long.job)
            self._long_work = BatchTimings([long.note])
        if self._long:
            self._run_chunk()
        # Else the last request would stay as long as none comes.
        current.set(None)

    def _run_batch(self, batch: Sequence[_QueuedJob], backlog: deque[_QueuedJob]) -> None:
        work = BatchTimings([waiting.note for waiting in batch])
        self._encode_batch(batch, work)
        if len(batch) > 1:
            # What is settled is all of theirs.
            current.set(None)
        self._group_commit(batch)
        done = []
        for waiting in batch:
            # Beside others it could not evict them; alone it can.
            if (
                not waiting.run_alone
                and (len(batch) > 1 or self._long)
                and isinstance(waiting.error, InsufficientStorage)
            ):
                waiting.error, waiting.run_alone = None, True
            else:
                done.append(waiting)
        backlog.extendleft(waiting for waiting in reversed(batch) if waiting not in done)
        if done:
            work.notes = [waiting.note for waiting in done]
            self._observer.on_batch_done(work)
            self._events.call_soon_threadsafe(self._resolve, done)

    def _run_chunk(self) -> None:
        assert self._long is not None
        start = perf_counter()
        current.set(self._long.request)
        over = next(self._steps, _DONE) is _DONE
        if over:
            self._group_commit([self._long])
        self._long_work.add_busy(start)
        if over:
            self._observer.on_batch_done(self._long_work)
            self._events.call_soon_threadsafe(self._resolve, [self._long])
            self._long = None

    def _group_commit(self, done: Sequence[_QueuedJob]) -> None:
        """Settle what these jobs have stored; some may have failed after all."""
        try:
            failed = self._settle()
        except Exception as error:
            failed = {waiting.job.key: error for waiting in done}
        for waiting in done:
            if waiting.error is None:
                waiting.error = failed.get(waiting.job.key)

    def _run_chunked(self, waiting: _QueuedJob, job: ChunkedJob[Any]) -> Generator[None, None, None]:
        streams = _run_guarded(waiting, job.prepare, frozenset([job.key])) or ()
        if waiting.error is not None:
            return
        try:
            slices = encode_chunked(self.backend, streams)
            encoded = yield from self._long_work.time_encoding(slices, len(streams))
            waiting.result = yield from job.complete_chunked(encoded)
        except Exception as error:
            waiting.error = error
            job.roll_back()

    def _receive(self, backlog: deque[_QueuedJob], *, wait: bool) -> bool:
        """Move what has arrived to the backlog; False once the device is to stop."""
        while wait or not self._inbox.empty():
            wait = False
            item = self._inbox.get()
            if item is None:
                return False
            backlog.append(item)
        return True

    def _encode_batch(self, batch: Sequence[_QueuedJob], work: BatchTimings) -> None:
        begun = perf_counter()
        under_way = [*batch, self._long] if self._long else batch
        keys = frozenset(waiting.job.key for waiting in under_way if waiting.job.key is not None)
        for waiting in batch:
            waiting.streams = _run_guarded(waiting, waiting.job.prepare, keys) or ()
        alive = [waiting for waiting in batch if waiting.error is None]
        encoded = self._encode(alive, work)
        for waiting in alive:
            if waiting.error is None:
                mine = [next(encoded) for _ in waiting.streams]
                waiting.result = _run_guarded(waiting, waiting.job.complete, mine)
            if waiting.error is not None:
                waiting.job.roll_back()
        work.add_busy(begun)

    def _encode(self, alive: Sequence[_QueuedJob], work: BatchTimings) -> Iterator[Encoded]:
        streams = [stream for waiting in alive for stream in waiting.streams]
        current.set(alive[0].request if len(alive) == 1 else None)
        start = perf_counter()
        try:
            encoded = self.backend.encode(streams) if streams else ()
        except Exception as error:
            if len(alive) == 1:
                alive[0].error = error
                return iter(())
            # Only who caused it fails: once more, one by one.
            return chain.from_iterable([list(self._encode([waiting], work)) for waiting in alive])
        work.add_encoding(start, len(streams))
        return iter(encoded)

    def _resolve(self, batch: Sequence[_QueuedJob]) -> None:
        self.depth -= sum(waiting.future is not None for waiting in batch)
        for waiting in batch:
            if waiting.future is None or waiting.future.done():
                continue
            if waiting.error is not None:
                waiting.future.set_exception(waiting.error)
            else:
                waiting.future.set_result(waiting.result)


def _run_guarded(waiting: _QueuedJob, step: Callable[[Any], T], argument: Any) -> T | None:
    current.set(waiting.request)
    try:
        return step(argument)
    except Exception as error:
        waiting.error = error
        return None


def _is_long(waiting: _QueuedJob) -> bool:
    current.set(waiting.request)
    return isinstance(waiting.job, ChunkedJob) and waiting.job.nbytes > CHUNKED_JOB_NBYTES


def _select_batch(
    backlog: deque[_QueuedJob], under_way: _QueuedJob | None
) -> tuple[list[_QueuedJob], _QueuedJob | None]:
    """Take up to a batch of jobs and a long one unless one is under way, no two of one key, leaving others in order.

    Who is to be alone waits for the long one, and then is.
    """
    batch: list[_QueuedJob] = []
    long: _QueuedJob | None = None
    seen: set[Hashable] = {under_way.job.key} if under_way else set()
    left: list[_QueuedJob] = []
    while backlog and len(batch) < MAX_BATCH_JOBS:
        waiting = backlog.popleft()
        key = waiting.job.key
        if waiting.run_alone and not (batch or long or under_way or left):
            return [waiting], None
        if waiting.run_alone or (key is not None and key in seen):
            left.append(waiting)
        # How much there is to do may depend on what is done before for the same key.
        elif _is_long(waiting):
            if long or under_way:
                left.append(waiting)
            else:
                long = waiting
        else:
            batch.append(waiting)
        seen.add(key)
    backlog.extendleft(reversed(left))
    return batch, long
