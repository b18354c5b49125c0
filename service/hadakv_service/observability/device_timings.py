"""Observer interface and timing records of the device thread."""

from collections.abc import Generator, Sequence
from time import perf_counter
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class BatchTimings:
    """Times of one batch of jobs, or of one chunked job with all its chunks.

    Points in time are seconds of perf_counter.

    Attributes:
        notes: values that the observer returned when the jobs were enqueued, one per job.
        started: time the first job started; all jobs of the batch stop waiting then.
        encode_started: time the first encoding started; 0 if nothing was encoded.
        encode_ended: time the last encoding ended; 0 if nothing was encoded.
        ended: time the last job ended.
        streams: number of encoded streams.
        encode_seconds: time spent encoding. It excludes pauses between chunks, when other jobs run.
        busy_seconds: time spent on the whole batch. It excludes pauses between chunks.
    """

    encode_started = encode_ended = ended = encode_seconds = busy_seconds = 0.0
    streams = 0

    def __init__(self, notes: Sequence[Any]) -> None:
        self.notes = notes
        self.started = perf_counter()

    def add_encoding(self, start: float, streams: int) -> None:
        """Add the time from `start` until now to the encoding time, and add the encoded streams."""
        self.encode_started = self.encode_started or start
        self.encode_ended = perf_counter()
        self.encode_seconds += self.encode_ended - start
        self.streams += streams

    def add_busy(self, start: float) -> None:
        """Add the time from `start` until now to the busy time."""
        self.ended = perf_counter()
        self.busy_seconds += self.ended - start

    def time_encoding(self, chunks: Generator[None, None, T], streams: int) -> Generator[None, None, T]:
        """Run a chunked encoding and measure it, without the pauses between chunks.

        Args:
            chunks: generator that encodes one chunk per step.
            streams: number of streams that it encodes.

        Yields:
            after each chunk, so that other jobs can run.

        Returns:
            the result of the generator.
        """
        while True:
            start = perf_counter()
            try:
                next(chunks)
            except StopIteration as end:
                self.streams += streams
                result: T = end.value
                return result
            finally:
                self.add_encoding(start, 0)
            yield


class DeviceObserver(Protocol):
    """Observer of the device's jobs. Its methods must be fast and must not raise."""

    def on_enqueue(self) -> Any:
        """Return a note for a job that is being enqueued. Called in the task of the request."""
        ...

    def on_batch_done(self, timings: BatchTimings) -> None:
        """Observe a finished batch. Called on the device thread, before any response is sent."""
        ...


class NullObserver:
    """Observer that ignores every event."""

    def on_enqueue(self) -> None:
        """Return no note."""

    def on_batch_done(self, timings: BatchTimings) -> None:
        """Ignore the batch."""
