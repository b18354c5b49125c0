"""CreateOperation: create a session, or set what an existing one left open."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hadakv_kernels import Encoded, Stream
from hadakv_service.device.jobs import run_to_completion
from hadakv_service.errors import SessionExists
from hadakv_service.operations.describe import describe
from hadakv_service.operations.write_operation import WriteOperation
from hadakv_service.sessions.session import MAX_LAYERS, Session
from hadakv_service.storage.session_store import Key, SessionStore
from hadakv_service.wire import responses


class CreateOperation(WriteOperation):
    """Create a session.

    Args:
        key: key of the session.
        requested: fields of `Session` that the request sets.
        store: store of the session.
        new: session without the requested fields, if there is none yet.

    Attributes:
        created: whether there was no session. Set by `prepare`.
    """

    def __init__(self, key: Key, requested: Mapping[str, Any], store: SessionStore, new: Session) -> None:
        self.key: Hashable = key
        self._key = key
        self._requested = requested
        self._store = store
        self._new = new

    def prepare(self, batch: frozenset[Hashable]) -> Sequence[Stream]:
        """Check the request against an existing session, and reserve memory. Return no streams."""
        record = self._store.find(self._key)
        self.created = record is None
        old = record.session if record else self._new
        self._session = _merge(old, self._requested, is_new=self.created)
        self._reservation = self._store.reserve(self._key, self._session, batch)
        return ()

    def complete(self, encoded: Sequence[Encoded]) -> responses.SessionInfo:  # noqa: ARG002 - nothing was encoded
        """Store the session and describe it."""
        assert self._reservation
        record = run_to_completion(self._store.commit(self._reservation, self._session))
        return describe(self._key[1], record)


def _merge(old: Session, requested: Mapping[str, Any], *, is_new: bool) -> Session:
    """Return the session with the requested fields.

    Raises:
        SessionExists: an existing session has another value of a field.
    """
    undecided = {name for name in ("codecs", "layers", "kv_heads", "head_dim") if getattr(old, name) is None}
    for name, value in requested.items():
        if not (is_new or name in undecided or getattr(old, name) == value):
            field = "codec" if name == "codecs" else name
            raise SessionExists(f"The session exists with another value of {field}.", field=field)
    if requested.get("layers", MAX_LAYERS) < old.stored_layers:
        raise SessionExists(
            f"The session already stores {old.stored_layers} layers; layers cannot be less.", field="layers"
        )
    return replace(old, **requested).with_declared_layers()
