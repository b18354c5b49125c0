"""Who is told what the device does, and in what terms."""

from collections.abc import Generator, Sequence
from time import perf_counter
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class BatchTimings:
    """Jobs done in one go: a batch, or a long job by itself with all its steps. Moments are perf_counter's seconds.

    Attributes:
        notes: what the observer noted of each job when it was asked for.
        begun: when the first job began, and none of them waited any longer.
        encoding: when all had begun, and encoding did; 0 if it never came to that.
        encoded: when everything was encoded; likewise.
        ended: when the last was finished.
        streams: how many were encoded.
        encode_seconds: time taken by encoding; less than from `encoding` to `encoded` where others had their turn.
        busy_seconds: time taken by everything, likewise.
    """

    encoding = encoded = ended = encode_seconds = busy_seconds = 0.0
    streams = 0

    def __init__(self, notes: Sequence[Any]) -> None:
        self.notes = notes
        self.begun = perf_counter()

    def add_encoding(self, start: float, streams: int) -> None:
        """Note that so many more were encoded just now, without a pause."""
        self.encoding = self.encoding or start
        self.encoded = perf_counter()
        self.encode_seconds += self.encoded - start
        self.streams += streams

    def add_busy(self, start: float) -> None:
        """Note that there was work until now, without a pause."""
        self.ended = perf_counter()
        self.busy_seconds += self.ended - start

    def time_encoding(self, steps: Generator[None, None, T], streams: int) -> Generator[None, None, T]:
        """Take the steps in which so many are encoded, noting the time that they take and pauses do not."""
        while True:
            start = perf_counter()
            try:
                next(steps)
            except StopIteration as end:
                self.streams += streams
                result: T = end.value
                return result
            finally:
                self.add_encoding(start, 0)
            yield


class DeviceObserver(Protocol):
    """Is told what the device does. It must be quick, and must not raise."""

    def on_enqueue(self) -> Any:
        """A job is asked for, by its caller's task: what is to be noted of it."""
        ...

    def on_batch_done(self, work: BatchTimings) -> None:
        """Jobs are done but not answered yet. Called on the device's thread."""
        ...


class NullObserver:
    """Nobody."""

    def on_enqueue(self) -> None:
        """Nothing is noted."""

    def on_batch_done(self, work: BatchTimings) -> None:
        """Nothing is told."""
