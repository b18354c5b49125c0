"""Choose the jobs of a batch from the backlog."""

import asyncio
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any

from hadakv_kernels import Stream
from hadakv_service.device.jobs import ChunkedJob, Job
from hadakv_service.observability.request_record import current

# Maximum number of jobs in a batch. With more, the first job would wait too long for the last one.
MAX_BATCH_JOBS = 32
# A job with more bytes than this runs in chunks.
CHUNKED_JOB_NBYTES = 4 << 20


class QueuedJob:
    """A job in the queue.

    Attributes:
        job: the job.
        future: what the caller awaits; None if there is no caller.
        note: what the observer noted when the job was queued.
        request: record of the request, so that log lines name it.
        run_alone: whether the job failed for lack of space in a batch and is to be retried alone.
        streams: streams to encode.
        result: result of the job.
        error: error of the job; None if it has not failed.
    """

    __slots__ = ("error", "future", "job", "note", "request", "result", "run_alone", "streams")

    def __init__(self, job: Job[Any], future: "asyncio.Future[Any] | None", note: Any) -> None:
        self.job = job
        self.future = future
        self.note = note
        self.request = current.get()
        self.run_alone = False
        self.streams: Sequence[Stream] = ()
        self.result: Any = None
        self.error: Exception | None = None


def _is_chunked(queued: QueuedJob) -> bool:
    current.set(queued.request)
    return isinstance(queued.job, ChunkedJob) and queued.job.nbytes > CHUNKED_JOB_NBYTES


def select_batch(backlog: deque[QueuedJob], in_progress: QueuedJob | None) -> tuple[list[QueuedJob], QueuedJob | None]:
    """Take a batch of jobs and at most one chunked job from the backlog, without two jobs of one key.

    Other jobs keep their order. A job marked run_alone waits until the chunked job has finished.

    Args:
        backlog: jobs in order of arrival.
        in_progress: chunked job in progress. No other one is taken then.
    """
    batch: list[QueuedJob] = []
    chunked: QueuedJob | None = None
    seen: set[Hashable] = {in_progress.job.key} if in_progress else set()
    skipped: list[QueuedJob] = []
    while backlog and len(batch) < MAX_BATCH_JOBS:
        queued = backlog.popleft()
        key = queued.job.key
        if queued.run_alone and not (batch or chunked or in_progress or skipped):
            return [queued], None
        if queued.run_alone or (key is not None and key in seen):
            skipped.append(queued)
        # Check this after the key: the size of a job may depend on earlier jobs with the same key.
        elif _is_chunked(queued):
            if chunked or in_progress:
                skipped.append(queued)
            else:
                chunked = queued
        else:
            batch.append(queued)
        seen.add(key)
    backlog.extendleft(reversed(skipped))
    return batch, chunked
