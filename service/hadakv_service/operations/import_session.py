"""ImportOperation: create a session from a session file."""

from collections.abc import Collection, Generator, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import Backend, CodecSpec, Encoded, Stream
from hadakv_service.device.jobs import ChunkedJob, run_to_completion
from hadakv_service.errors import InvalidRequest, SessionExists
from hadakv_service.operations.session_file_reader import SessionFile
from hadakv_service.operations.write_operation import WriteOperation
from hadakv_service.sessions.layer_run import PAGE_TOKENS, LayerRun
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.session_store import Key, SessionRecord, SessionStore

# These bits are all ones in an infinity or NaN.
FLOAT16_EXPONENT = 0x7C00


class ImportOperation(WriteOperation, ChunkedJob[SessionRecord]):
    """Create a session from a file, all of it or nothing.

    Args:
        key: key of the session.
        file: file whose tensors stay valid until the job is complete. They are not used afterwards.
        store: store of the session.
        backend: backend whose memory the pages use.
        new: session with the values that the file does not have.
    """

    def __init__(self, key: Key, file: SessionFile, store: SessionStore, backend: Backend, new: Session) -> None:
        self.key: Hashable = key
        self.nbytes = sum(tensor.nbytes for tensor in file.tensors.values())
        self._key = key
        self._file = file
        self._store = store
        self._backend = backend
        self._new = new

    def prepare(self, batch: Collection[Hashable]) -> Sequence[Stream]:
        """Reserve memory, unless the session exists. Return no streams."""
        if self._store.has(self._key):
            raise SessionExists(f"The session {self._key[1]!r} exists already.", field="id")
        session, spans = self._file.session, self._file.spans
        empty = tuple(LayerRun(span.layers, span.base, span.base) for span in spans)
        ttl, durability = session.ttl_seconds or self._new.ttl_seconds, self._new.durability
        self._session = replace(session, ttl_seconds=ttl, durability=durability, runs=empty)
        pages = sum(-(-span.tokens // PAGE_TOKENS) for span in spans)
        self._reservation = self._store.reserve(
            self._key, self._session, batch, nbytes=self.nbytes, pages=pages, may_bypass_memory=True
        )
        return ()

    def complete(self, encoded: Sequence[Encoded]) -> SessionRecord:
        """Store the session."""
        return run_to_completion(self.complete_chunked(encoded))

    def complete_chunked(self, encoded: Sequence[Encoded]) -> Generator[None, None, SessionRecord]:  # noqa: ARG002 - nothing was encoded
        """Store the session in chunks: K of a page, V of it, then the page. The last chunk commits the session."""
        assert self._reservation
        runs, first = [], 0
        for span, run in zip(self._file.spans, self._session.runs, strict=True):
            layers = range(first, first + span.layers)
            for start in range(0, span.tokens, PAGE_TOKENS):
                tokens = slice(start, start + PAGE_TOKENS)
                streams = []
                for name, spec in zip("kv", self._session.specs, strict=True):
                    streams.append(self._stream(name, spec, layers, tokens))
                    yield
                run = run.append(Page(*streams), self._backend)  # noqa: PLW2901 - the run grows into its successor
                if self._reservation.bypasses_memory:
                    self._store.write_through(self._reservation, run.pages[-1:])
                yield
            runs.append(run)
            first = layers.stop
        session = replace(self._session, runs=tuple(runs))
        return (yield from self._store.commit(self._reservation, session))

    def _stream(self, name: str, spec: CodecSpec, layers: range, tokens: slice) -> Encoded:
        """Copy some tokens of K or V of a run into the backend's memory.

        Raises:
            InvalidRequest: an element is none that the codec can produce.
        """
        views = [self._file.stream(layer, name) for layer in layers]
        packed = np.stack([view.packed[:, tokens] for view in views])
        norms = np.stack([view.norms[:, tokens] for view in views])
        for part, fault, invalid in _invalid_vectors(packed, norms, spec):
            if invalid.any():
                layer, head, token = map(int, np.unravel_index(invalid.argmax(), invalid.shape))
                place = f"at head {head}, token {tokens.start + token}"
                raise InvalidRequest(
                    [(f"layers.{layers[layer]}.{name}.{part}", f"has {fault} {place}; nothing was stored")]
                )
        return Encoded(self._backend.to_device(packed), self._backend.to_device(norms))


def _invalid_vectors(
    packed: NDArray[np.uint8], norms: NDArray[np.float32], spec: CodecSpec
) -> Iterator[tuple[str, str, Any]]:
    """Yield each possible fault: name of the tensor, the fault, and for each vector whether it has it, bool."""
    codec = spec.codec
    if codec.kind == "float16":
        exponents = packed.view(np.uint16) & FLOAT16_EXPONENT
        yield "values", "NaN or infinity", exponents.max(axis=-1) == FLOAT16_EXPONENT
        return
    yield "norms", "NaN, infinity or a negative number", ~(np.isfinite(norms) & (norms >= 0)).all(axis=-1)
    if codec.layout == "byte" and codec.bits < 8:
        yield "packed", f"a byte that is no index of {codec.bits} bits", packed.max(axis=-1) >= 1 << codec.bits
