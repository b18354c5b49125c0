"""The import: a file's tokens become a session's pages, as one job of the device."""

from collections.abc import Collection, Generator, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import Backend, CodecSpec, Encoded, Stream
from hadakv_service.device.chunks import run_to_completion
from hadakv_service.device.jobs import ChunkedJob
from hadakv_service.errors import InsufficientStorage, InvalidRequest, SessionExists
from hadakv_service.operations.session_file_reader import SessionFile
from hadakv_service.sessions.layer_run import PAGE_TOKENS, LayerRun
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.session_store import Key, SessionRecord, SessionStore

# All ones in an infinity or NaN.
FLOAT16_EXPONENT = 0x7C00


class ImportOperation(ChunkedJob[SessionRecord]):
    """Makes a session of a file, all of it or nothing.

    Args:
        key: of the session.
        file: its tensors must last until the job is done, and are not used any longer.
        store: where the session goes.
        backend: where its pages go.
        new: what a session is where the file does not say.
    """

    def __init__(self, key: Key, file: SessionFile, store: SessionStore, backend: Backend, new: Session) -> None:
        self.key: Hashable = key
        self.nbytes = sum(tensor.nbytes for tensor in file.tensors.values())
        self._key = key
        self._file = file
        self._store = store
        self._backend = backend
        self._new = new
        self._reserved = 0
        self._bypasses_memory = False

    def prepare(self, batch: Collection[Hashable]) -> Sequence[Stream]:
        """Reserve the bytes, unless there is such a session; there is nothing to encode."""
        if self._store.has(self._key):
            raise SessionExists(f"There is a session {self._key[1]!r} already.", field="id")
        session, spans = self._file.session, self._file.spans
        empty = tuple(LayerRun(span.layers, span.base, span.base) for span in spans)
        ttl, durability = session.ttl_seconds or self._new.ttl_seconds, self._new.durability
        self._session = replace(session, ttl_seconds=ttl, durability=durability, runs=empty)
        pages = sum(-(-span.tokens // PAGE_TOKENS) for span in spans)
        try:
            self._reserve(batch, pages)
        except InsufficientStorage:
            if not self._store.can_spill(self._session):
                raise
            # More than memory is for: it goes past that.
            self._bypasses_memory = True
            self._reserve(batch, pages, extra=-self.nbytes)
        self._batch = batch
        return ()

    def _reserve(self, batch: Collection[Hashable], pages: int, extra: int = 0) -> None:
        self._reserved = self._store.reserve_growth(
            self._key, self._session, batch, nbytes=self.nbytes, pages=pages, extra=extra
        )

    def complete(self, encoded: Sequence[Encoded]) -> SessionRecord:
        """Store the session."""
        return run_to_completion(self.complete_chunked(encoded))

    def complete_chunked(self, encoded: Sequence[Encoded]) -> Generator[None, None, SessionRecord]:  # noqa: ARG002 - there is none
        """The same, pausing after each page's k, its v, and when they are in their run; the last step stores it all."""
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
                if self._bypasses_memory:
                    self._store.leave(self._key, run.pages[-1:])
                yield
            runs.append(run)
            first = layers.stop
        session = replace(self._session, runs=tuple(runs))
        yield from self._store.ahead_in_steps(self._key, session)
        yield from self._store.room_in_steps(self._reserved, self._batch)
        entry = self._store.commit(self._key, session, self._reserved, self._batch)
        self._reserved = 0
        return entry

    def roll_back(self) -> None:
        """Give the reserved bytes back."""
        self._store.release(self._reserved)
        self._reserved = 0

    def _stream(self, name: str, spec: CodecSpec, layers: range, tokens: slice) -> Encoded:
        """Some tokens of k or v of a run's layers, in memory of the backend's own.

        Raises:
            InvalidRequest: an element is none that the codec gives.
        """
        views = [self._file.stream(layer, name) for layer in layers]
        packed = np.stack([view.packed[:, tokens] for view in views])
        norms = np.stack([view.norms[:, tokens] for view in views])
        for part, fault, wrong in _invalid_vectors(packed, norms, spec):
            if wrong.any():
                layer, head, token = map(int, np.unravel_index(wrong.argmax(), wrong.shape))
                place = f"at head {head}, token {tokens.start + token}"
                raise InvalidRequest(
                    [(f"layers.{layers[layer]}.{name}.{part}", f"has {fault} {place}; nothing was stored")]
                )
        return Encoded(self._backend.to_device(packed), self._backend.to_device(norms))


def _invalid_vectors(
    packed: NDArray[np.uint8], norms: NDArray[np.float32], spec: CodecSpec
) -> Iterator[tuple[str, str, Any]]:
    """What may be wrong with a tensor's elements: which tensor's, what, and for each vector whether it is, bool."""
    codec = spec.codec
    if codec.kind == "float16":
        exponents = packed.view(np.uint16) & FLOAT16_EXPONENT
        yield "values", "NaN or infinity", exponents.max(axis=-1) == FLOAT16_EXPONENT
        return
    yield "norms", "NaN, infinity or a negative number", ~(np.isfinite(norms) & (norms >= 0)).all(axis=-1)
    if codec.layout == "byte" and codec.bits < 8:
        yield "packed", f"a byte that is no index of {codec.bits} bits", packed.max(axis=-1) >= 1 << codec.bits
