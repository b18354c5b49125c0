"""TruncateOperation: delete tokens from a position on. ForkOperation: copy a session, sharing its pages."""

from collections.abc import Hashable, Sequence

from hadakv_kernels import Backend, Encoded, Stream
from hadakv_service.device.jobs import run_to_completion
from hadakv_service.operations.describe import describe
from hadakv_service.operations.write_operation import WriteOperation
from hadakv_service.storage.session_store import Key, SessionStore
from hadakv_service.wire import responses


class TruncateOperation(WriteOperation):
    """Delete every token of a session from a position on, in all layers.

    Args:
        key: key of the session.
        length: position after the last token to keep.
        store: store of the session.
        backend: backend that copies the last page.
    """

    def __init__(self, key: Key, length: int, store: SessionStore, backend: Backend) -> None:
        self.key: Hashable = key
        self._key = key
        self._length = length
        self._store = store
        self._backend = backend

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        """Pin the sessions of the batch. Return no streams. A truncation needs no memory, so nothing is reserved."""
        self._reservation = self._store.memory.reserve(self._key, 0, batch)
        return ()

    def complete(self, encoded: Sequence[Encoded]) -> responses.SessionInfo:  # noqa: ARG002 - nothing was encoded
        """Store the shorter session and describe it."""
        assert self._reservation
        session = self._store.get(self._key).session.truncate(self._length, self._backend)
        record = run_to_completion(self._store.commit(self._reservation, session))
        return describe(self._key[1], record)


class ForkOperation:
    """Create a session from all or the first tokens of another. Shared pages are stored once.

    Args:
        source: key of the session to fork. It is a value, so other jobs may use it at the same time.
        target: key of the new session.
        length: position after the last token to keep; None for all.
        store: store of both sessions.
        backend: backend that copies the last page.
    """

    def __init__(self, source: Key, target: Key, length: int | None, store: SessionStore, backend: Backend) -> None:
        # No other job may create the target meanwhile.
        self.key: Hashable = target
        self._source = source
        self._target = target
        self._length = length
        self._store = store
        self._backend = backend

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        """Pin the sessions of the batch. Return no streams."""
        self._pinned = batch
        return ()

    def complete(self, encoded: Sequence[Encoded]) -> responses.SessionInfo:  # noqa: ARG002 - nothing was encoded
        """Store the new session and describe it."""
        session = self._store.get(self._source).session
        if self._length is not None:
            session = session.truncate(self._length, self._backend)
        record = run_to_completion(self._store.fork(self._source, self._target, session, self._pinned))
        return describe(self._target[1], record)

    def roll_back(self) -> None:
        """Do nothing: `SessionStore.fork` releases its reservation."""
