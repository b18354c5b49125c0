"""Job, ChunkedJob, FunctionJob; chunked encoding."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from hadakv_kernels import Backend, Encoded, Stream

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Job(Protocol[T_co]):
    """Work for the device thread. Jobs with the same key run one after another, never in one batch."""

    @property
    def key(self) -> Hashable:
        """What the job works on, for example a session; None if it shares nothing with other jobs."""
        ...

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        """Check the request and reserve memory, before anything is changed.

        Args:
            batch: keys of all jobs in progress.

        Returns:
            streams to encode.
        """
        ...

    def complete(self, encoded: Sequence[Encoded]) -> T_co:
        """Store the encoded streams, in the order of `prepare`. Return the result of the job."""
        ...

    def roll_back(self) -> None:
        """Undo `prepare` after encoding or `complete` has failed."""
        ...


class ShortJob(Job[T_co], Protocol):
    """A job that may run on the event loop's thread, if it is short."""

    @property
    def is_short(self) -> bool:
        """Whether the job takes a fraction of a millisecond, and needs neither the GPU nor the disk.

        The executor asks just before it runs the job, while it holds its lock.
        """
        ...


class FunctionJob(Generic[T]):
    """A job that calls a function and encodes nothing.

    Args:
        work: function to call.
        key: what the function works on.
    """

    def __init__(self, work: Callable[[], T], key: Hashable = None) -> None:
        self.key = key
        self._work = work

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:  # noqa: ARG002 - a function reserves nothing
        """Return no streams."""
        return ()

    def complete(self, encoded: Sequence[Encoded]) -> T:  # noqa: ARG002 - nothing was encoded
        """Call the function."""
        return self._work()

    def roll_back(self) -> None:
        """Do nothing: nothing was reserved."""


class ChunkedJob(ABC, Generic[T]):
    """A job that runs in chunks if it is large. Other jobs run between the chunks, but no other large one.

    Jobs with the same key wait until it is complete.

    Attributes:
        key: what the job works on.
        nbytes: bytes to encode or copy.
    """

    key: Hashable
    nbytes: int

    @abstractmethod
    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        """See `Job.prepare`. If the job runs in chunks, `batch` has only its own key.

        Jobs that run between its chunks get its key in their batch.
        """

    @abstractmethod
    def complete(self, encoded: Sequence[Encoded]) -> T:
        """Run `complete_chunked` to its end."""

    @abstractmethod
    def complete_chunked(self, encoded: Sequence[Encoded]) -> Generator[None, None, T]:
        """Store the encoded streams in chunks. Other jobs may run at each yield."""

    @abstractmethod
    def roll_back(self) -> None:
        """See `Job.roll_back`."""


def run_to_completion(chunks: Generator[None, None, T]) -> T:
    """Run all chunks without a pause. Return the result."""
    while True:
        try:
            next(chunks)
        except StopIteration as end:
            result: T = end.value
            return result


def encode_chunked(backend: Backend, streams: Sequence[Stream]) -> Generator[None, None, list[Encoded]]:
    """Encode streams in chunks of `backend.slice_nbytes`, or in one call if the backend prefers that."""
    if backend.slice_nbytes is None:
        encoded = backend.encode(streams)
        yield
        return encoded
    encoded = []
    for stream in streams:
        encoded.append((yield from _encode_stream_chunked(backend, stream, backend.slice_nbytes)))
    return encoded


def _encode_stream_chunked(backend: Backend, stream: Stream, nbytes: int) -> Generator[None, None, Encoded]:
    x, spec = stream
    lead = x.shape[:-1]
    rows = x.reshape(math.prod(lead), spec.head_dim)
    chunk_rows = nbytes // (spec.head_dim * x.itemsize)
    if len(rows) <= chunk_rows:
        (encoded,) = backend.encode([stream])
        yield
        return encoded
    chunks: list[Encoded] = []
    for start in range(0, len(rows), chunk_rows):
        chunks += backend.encode([Stream(rows[start : start + chunk_rows], spec)])
        yield
    packed = _concatenate(backend, [chunk.packed for chunk in chunks], lead)
    yield
    return Encoded(packed, _concatenate(backend, [chunk.norms for chunk in chunks], lead))


def _concatenate(backend: Backend, arrays: list[Any], lead: tuple[int, ...]) -> Any:
    return backend.concatenate(arrays, 0).reshape((*lead, arrays[0].shape[-1]))
