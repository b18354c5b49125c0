"""What the device is asked to do: something at once, or something long in steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Generic, Protocol, TypeVar

from hadakv_kernels import Encoded, Stream

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Job(Protocol[T_co]):
    """Work for the device. Jobs of one key never share a batch: each begins where the one before it ended."""

    @property
    def key(self) -> Hashable:
        """What the job works on; None is nothing it shares with others."""
        ...

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        """Check, reserve, and name what is to be encoded. `batch` has the keys of all jobs under way."""
        ...

    def complete(self, encoded: Sequence[Encoded]) -> T_co:
        """Take what was encoded, and answer."""
        ...

    def roll_back(self) -> None:
        """Undo `begin`: encoding or finishing failed."""
        ...


class FunctionJob(Generic[T]):
    """A job that encodes nothing."""

    def __init__(self, work: Callable[[], T], key: Hashable = None) -> None:
        self.key = key
        self._work = work

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:  # noqa: ARG002 - a call never evicts
        """Nothing to encode."""
        return ()

    def complete(self, encoded: Sequence[Encoded]) -> T:  # noqa: ARG002 - nothing was encoded
        """Do the work."""
        return self._work()

    def roll_back(self) -> None:
        """Nothing to undo."""


class ChunkedJob(ABC, Generic[T]):
    """A job that goes in steps if it is large. Others run between them, but none of the same key and none as large.

    Attributes:
        key: as for any job.
        nbytes: what it has to encode.
    """

    key: Hashable
    nbytes: int

    @abstractmethod
    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        """As for any job. `batch` has only its own key: jobs that run between steps are told its key instead."""

    @abstractmethod
    def complete(self, encoded: Sequence[Encoded]) -> T:
        """All of `finish_in_steps` at once."""

    @abstractmethod
    def complete_chunked(self, encoded: Sequence[Encoded]) -> Generator[None, None, T]:
        """Take what was encoded, and answer; others may have their turn at each pause."""

    @abstractmethod
    def roll_back(self) -> None:
        """As for any job."""
