"""DeviceExecutor: one thread, a bounded queue, batching, chunked jobs.

Everything that uses the store or the backend runs on this thread, in the order of the requests. Jobs that wait at the
same time form a batch: the backend encodes all their streams in one call, then each job completes. A large job runs in
chunks. Jobs that arrive meanwhile run between two chunks.

A short job that arrives when nothing waits runs at once on the event loop's thread. Waking another thread and being
woken by it takes longer than such a job. One lock guards the store and the backend: the device thread holds it while a
batch or a chunk runs, the event loop while a short job runs. The event loop never waits for it.
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

from hadakv_kernels import Backend, Encoded
from hadakv_service.device.batch import QueuedJob, select_batch
from hadakv_service.device.jobs import ChunkedJob, FunctionJob, Job, ShortJob, encode_chunked
from hadakv_service.errors import Busy, InsufficientStorage
from hadakv_service.observability.device_timings import BatchTimings, DeviceObserver, NullObserver
from hadakv_service.observability.request_record import current

log = logging.getLogger(__name__)

_EXHAUSTED = object()

T = TypeVar("T")


class DeviceExecutor:
    """Runs jobs on its own thread.

    Args:
        backend: backend that only this thread uses.
        limit: maximum number of jobs waiting and running.
        observer: receives the timings of jobs.
        group_commit: called after each batch, before any caller gets its result. Returns the error of each job, by
            key, that has failed after all.

    Attributes:
        backend: backend that only this thread uses.
        limit: maximum number of jobs waiting and running.
        depth: number of jobs waiting and running.
    """

    def __init__(
        self,
        backend: Backend,
        limit: int,
        observer: DeviceObserver | None = None,
        group_commit: Callable[[], Mapping[Any, Exception]] = dict[Any, Exception],
    ) -> None:
        self.backend = backend
        self.depth = 0
        self.limit = limit
        self._commit = group_commit
        self._observer = observer or NullObserver()
        self._inbox: SimpleQueue[QueuedJob | None] = SimpleQueue()
        self._chunked: QueuedJob | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="hadakv-device", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread. Results are delivered on the event loop."""
        self._events = loop
        self._thread.start()

    def stop(self, last: Callable[[], object] | None = None) -> None:
        """Complete all queued jobs, call `last`, and stop the thread."""
        if last:
            self._inbox.put(QueuedJob(FunctionJob(last), None, self._observer.on_enqueue()))
        self._inbox.put(None)
        self._thread.join()

    async def run(self, job: Job[T]) -> T:
        """Run a job and return its result.

        Raises:
            Busy: the queue is full.
        """
        if self.depth >= self.limit:
            raise Busy(f"The device queue is full: {self.limit} jobs are queued or running.")
        return await self._enqueue(job)

    async def run_short(self, job: ShortJob[T]) -> T:
        """Run a job and return its result: at once and on this thread, if it is short and nothing else waits or runs.

        Raises:
            Busy: the queue is full.
        """
        if not self.depth and self._lock.acquire(blocking=False):
            try:
                if job.is_short:
                    return self._run_here(job)
            finally:
                self._lock.release()
        return await self.run(job)

    def _run_here(self, job: Job[T]) -> T:
        """Run a job on this thread. The caller holds the lock."""
        queued = QueuedJob(job, None, self._observer.on_enqueue())
        timings = self._process([queued])
        self._observer.on_batch_done(timings)
        # The rest of the request runs in the same context.
        current.set(queued.request)
        if queued.error is not None:
            raise queued.error
        return queued.result  # type: ignore[no-any-return]  # of the type of the job

    async def call(self, work: Callable[[], T], key: Hashable = None) -> T:
        """Call a function on the device thread, after all earlier jobs with the same key.

        Raises:
            Busy: the queue is full.
        """
        return await self.run(FunctionJob(work, key))

    async def call_unbounded(self, work: Callable[[], T]) -> T:
        """Call a function on the device thread, even if the queue is full.

        For a request whose response has begun: it is too late to reject it.
        """
        return await self._enqueue(FunctionJob(work))

    async def run_unbounded(self, job: Job[T]) -> T:
        """Run a job, even if the queue is full: a part of a long request that was accepted."""
        return await self._enqueue(job)

    def submit(self, job: Job[object]) -> None:
        """Queue a job, even if the queue is full, and do not wait for it."""
        self._enqueue(job).add_done_callback(_log_failure)

    def _enqueue(self, job: Job[T]) -> "asyncio.Future[T]":
        self.depth += 1
        future: asyncio.Future[T] = self._events.create_future()
        self._inbox.put(QueuedJob(job, future, self._observer.on_enqueue()))
        return future

    def _loop(self) -> None:
        backlog: deque[QueuedJob] = deque()
        is_open = True
        while is_open or backlog or self._chunked:
            is_open = self._receive(backlog, wait=not (backlog or self._chunked)) and is_open
            try:
                with self._lock:
                    self._run_once(backlog)
            except BaseException:
                # Callers would wait forever. The disk is consistent at any moment, so exit.
                log.critical("device thread failed, exiting", exc_info=True)
                os._exit(70)

    def _run_once(self, backlog: deque[QueuedJob]) -> None:
        """Run one batch, and one chunk of the chunked job."""
        batch, chunked = select_batch(backlog, self._chunked)
        self._run_batch(batch, backlog)
        if chunked:
            assert isinstance(chunked.job, ChunkedJob)
            self._chunked, self._chunks = chunked, self._run_chunked(chunked, chunked.job)
            self._chunked_timings = BatchTimings([chunked.note])
        if self._chunked:
            self._run_chunk()
        # Otherwise the thread would keep the last request in memory until the next one arrives.
        current.set(None)

    def _run_batch(self, batch: Sequence[QueuedJob], backlog: deque[QueuedJob]) -> None:
        timings = self._process(batch)
        done = []
        for queued in batch:
            # A job cannot evict sessions of other jobs in its batch. Retry it alone.
            if (
                not queued.run_alone
                and (len(batch) > 1 or self._chunked)
                and isinstance(queued.error, InsufficientStorage)
            ):
                queued.error, queued.run_alone = None, True
            else:
                done.append(queued)
        backlog.extendleft(queued for queued in reversed(batch) if queued not in done)
        if done:
            timings.notes = [queued.note for queued in done]
            self._observer.on_batch_done(timings)
            self._events.call_soon_threadsafe(self._resolve, done)

    def _process(self, batch: Sequence[QueuedJob]) -> BatchTimings:
        """Prepare, encode, complete and commit the jobs of a batch. Each gets its result or its error."""
        timings = BatchTimings([queued.note for queued in batch])
        self._encode_batch(batch, timings)
        if len(batch) > 1:
            # A group commit belongs to all requests of the batch, so its log lines name none.
            current.set(None)
        self._group_commit(batch)
        return timings

    def _run_chunk(self) -> None:
        assert self._chunked is not None
        start = perf_counter()
        current.set(self._chunked.request)
        is_done = next(self._chunks, _EXHAUSTED) is _EXHAUSTED
        if is_done:
            self._group_commit([self._chunked])
        self._chunked_timings.add_busy(start)
        if is_done:
            self._observer.on_batch_done(self._chunked_timings)
            self._events.call_soon_threadsafe(self._resolve, [self._chunked])
            self._chunked = None

    def _group_commit(self, done: Sequence[QueuedJob]) -> None:
        """Commit what these jobs have stored. Some of them may fail here."""
        try:
            failed = self._commit()
        except Exception as error:
            failed = {queued.job.key: error for queued in done}
        for queued in done:
            if queued.error is None:
                queued.error = failed.get(queued.job.key)

    def _run_chunked(self, queued: QueuedJob, job: ChunkedJob[Any]) -> Generator[None, None, None]:
        streams = _run_guarded(queued, job.prepare, frozenset([job.key])) or ()
        if queued.error is not None:
            return
        try:
            chunks = encode_chunked(self.backend, streams)
            encoded = yield from self._chunked_timings.time_encoding(chunks, len(streams))
            queued.result = yield from job.complete_chunked(encoded)
        except Exception as error:
            queued.error = error
            job.roll_back()

    def _receive(self, backlog: deque[QueuedJob], *, wait: bool) -> bool:
        """Move queued jobs to the backlog. Return False if the thread is to stop."""
        while wait or not self._inbox.empty():
            wait = False
            item = self._inbox.get()
            if item is None:
                return False
            backlog.append(item)
        return True

    def _encode_batch(self, batch: Sequence[QueuedJob], timings: BatchTimings) -> None:
        start = perf_counter()
        in_progress = [*batch, self._chunked] if self._chunked else batch
        keys = frozenset(queued.job.key for queued in in_progress if queued.job.key is not None)
        for queued in batch:
            queued.streams = _run_guarded(queued, queued.job.prepare, keys) or ()
        prepared = [queued for queued in batch if queued.error is None]
        encoded = self._encode(prepared, timings)
        for queued in prepared:
            if queued.error is None:
                own = [next(encoded) for _ in queued.streams]
                queued.result = _run_guarded(queued, queued.job.complete, own)
            if queued.error is not None:
                queued.job.roll_back()
        timings.add_busy(start)

    def _encode(self, prepared: Sequence[QueuedJob], timings: BatchTimings) -> Iterator[Encoded]:
        streams = [stream for queued in prepared for stream in queued.streams]
        current.set(prepared[0].request if len(prepared) == 1 else None)
        start = perf_counter()
        try:
            encoded = self.backend.encode(streams) if streams else ()
        except Exception as error:
            if len(prepared) == 1:
                prepared[0].error = error
                return iter(())
            # Encode for each job alone, so that only the failing one reports the error.
            return chain.from_iterable([list(self._encode([queued], timings)) for queued in prepared])
        timings.add_encoding(start, len(streams))
        return iter(encoded)

    def _resolve(self, batch: Sequence[QueuedJob]) -> None:
        self.depth -= sum(queued.future is not None for queued in batch)
        for queued in batch:
            if queued.future is None or queued.future.done():
                continue
            if queued.error is not None:
                queued.future.set_exception(queued.error)
            else:
                queued.future.set_result(queued.result)


def _log_failure(done: "asyncio.Future[object]") -> None:
    if not done.cancelled() and (error := done.exception()):
        log.error("background job failed", exc_info=error)


def _run_guarded(queued: QueuedJob, step: Callable[[Any], T], argument: Any) -> T | None:
    current.set(queued.request)
    try:
        return step(argument)
    except Exception as error:
        queued.error = error
        return None
