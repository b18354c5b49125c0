"""The append: everything an append checks, reserves, encodes and stores, as one job of the device."""

from collections.abc import Collection, Generator, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import HEAD_DIMS, Backend, Codec, CodecSpec, Encoded, Stream
from hadakv_service.device.chunks import run_to_completion
from hadakv_service.device.jobs import ChunkedJob
from hadakv_service.errors import InsufficientStorage, InvalidRequest, NonFinite
from hadakv_service.sessions.layer_run import PAGE_TOKENS, same_bytes
from hadakv_service.sessions.page import Page, first_non_finite, on_host
from hadakv_service.sessions.session import MAX_LAYERS, Session, Shape
from hadakv_service.storage.session_store import Key, SessionStore
from hadakv_service.wire import messages

INPUT_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class AppendOutcome:
    """What an append answers; streams are in host memory."""

    created: bool
    position: int
    tokens: int
    k: Encoded
    v: Encoded
    specs: tuple[CodecSpec, CodecSpec]


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """A checked request: k and v are views of the body, `[layers, kv_heads, tokens, head_dim]`."""

    k: NDArray[Any]
    v: NDArray[Any]
    shape: Shape
    codecs: tuple[Codec, Codec] | None

    @classmethod
    def from_body(cls, body: messages.AppendBody) -> "AppendRequest":
        """Check all that can be checked without the session.

        Raises:
            InvalidRequest: tensors are malformed, disagree, or have a head_dim there is no codec for.
        """
        k, v = body.k.array("k", *INPUT_DTYPES), body.v.array("v", *INPUT_DTYPES)
        if k.shape != v.shape:
            raise InvalidRequest([("v.shape", f"must equal k's {list(k.shape)}, not {list(v.shape)}")])
        if k.dtype != v.dtype:
            raise InvalidRequest([("v.dtype", f"must equal k's {body.k.dtype}, not {body.v.dtype}")])
        if k.ndim not in (3, 4):
            axes = "[layers, kv_heads, tokens, head_dim], or [kv_heads, tokens, head_dim] for one layer"
            raise InvalidRequest([("k.shape", f"must be {axes}, not {list(k.shape)}")])
        k, v = (k, v) if k.ndim == 4 else (k[None], v[None])
        layers, kv_heads, tokens, head_dim = k.shape
        if head_dim not in HEAD_DIMS:
            raise InvalidRequest([("k.shape", f"head_dim must be one of {HEAD_DIMS}, not {head_dim}")])
        if not (layers and kv_heads):
            raise InvalidRequest([("k.shape", "must have at least one layer and one head")])
        if body.layer + layers > MAX_LAYERS:
            raise InvalidRequest([("layer", f"there may be at most {MAX_LAYERS} layers")])
        shape = Shape(body.layer, layers, kv_heads, tokens, head_dim, body.position)
        return cls(k, v, shape, body.codec.codecs() if body.codec else None)


class AppendOperation(ChunkedJob[AppendOutcome]):
    """Stores an append in its session, all of it or nothing.

    Args:
        key: the session's.
        append: what to store.
        store: where.
        backend: encodes it.
        new: what the session is to be if there is none.
    """

    def __init__(self, key: Key, append: AppendRequest, store: SessionStore, backend: Backend, new: Session) -> None:
        self.key: Hashable = key
        self._nbytes: int | None = None
        self._key = key
        self._request = append
        self._store = store
        self._backend = backend
        self._new = new
        self._reserved = 0

    @property
    def nbytes(self) -> int:  # type: ignore[override]  # known only once it is asked for
        """Of the tensors, and of what is stored and has to be split for them."""
        if self._nbytes is None:
            self._nbytes = self._request.k.nbytes + self._request.v.nbytes
            # Whatever is wrong, it will be told when it begins.
            with suppress(Exception):
                if entry := self._store.find(self._key):
                    self._nbytes += entry.session.split_runs_nbytes(
                        self._request.shape.layer, self._request.shape.layers
                    )
        return self._nbytes

    def prepare(self, batch: Collection[Hashable]) -> Sequence[Stream]:
        """Check against the session and reserve the bytes."""
        shape = self._request.shape
        entry = self._store.find(self._key)
        self._created = entry is None
        session = entry.session if entry else self._new
        self._session = session.with_shape(shape, self._request.codecs)
        self._position, self._at_end = self._session.append_position(shape)
        self._specs = self._session.specs
        if self._at_end:
            split = self._session.split_runs_nbytes(shape.layer, shape.layers)
            self._session = self._session.split_runs(shape.layer, shape.layers)
            self._batch = batch
            self._in_memory = True
            try:
                self._reserve(split)
            except InsufficientStorage:
                if not (split and self._store.can_spill(self._session)):
                    raise
                # There is no room for a second copy of what is split.
                self._in_memory = False
                self._reserve(0)
            self._split = bool(split)
        k_spec, v_spec = self._specs
        return Stream(self._request.k, k_spec), Stream(self._request.v, v_spec)

    def _reserve(self, extra: int) -> None:
        shape = self._request.shape
        rows = shape.layers * shape.kv_heads * shape.tokens
        nbytes = rows * sum(spec.nbytes for spec in self._specs)
        pages = self._session.new_pages(shape.layer, shape.layers, shape.tokens)
        self._reserved = self._store.reserve_growth(
            self._key, self._session, self._batch, nbytes=nbytes, pages=pages, extra=extra
        )

    def complete(self, encoded: Sequence[Encoded]) -> AppendOutcome:
        """Store what was encoded, unless it is not finite or stored already."""
        return run_to_completion(self.complete_chunked(encoded))

    def complete_chunked(self, encoded: Sequence[Encoded]) -> Generator[None, None, AppendOutcome]:
        """The same, pausing after each page; nothing is stored before the last."""
        page = Page(*encoded)
        for name, stream, spec in zip("kv", encoded, self._specs, strict=True):
            if not self._backend.all_finite(stream, spec):
                raise self._non_finite(name, first_non_finite(on_host(stream, self._backend), spec))
        if self._at_end:
            session = self._session
            for tokens in _page_aligned_slices(self._position, page.tokens):
                # Nothing is cut from a page that goes as a whole: a view would only be one more array to keep.
                part = page if tokens == slice(0, page.tokens) else page.slice(slice(None), tokens)
                session = session.append(self._request.shape.layer, part, self._backend)
                yield
            if self._split:
                yield from self._store.room_in_steps(self._reserved, self._batch)
                yield from self._store.separate_in_steps(self._key, session, self._backend, in_memory=self._in_memory)
            yield from self._store.ahead_in_steps(self._key, session)
            yield from self._store.room_in_steps(self._reserved, self._batch)
            self._store.commit(self._key, session, self._reserved, self._batch)
            self._reserved = 0
        else:
            self._check_repetition(page)
            # Unless it expired meanwhile.
            if self._store.find(self._key):
                self._store.touch(self._key)
        k, v = (on_host(stream, self._backend) for stream in encoded)
        return AppendOutcome(self._created, self._position, self._request.shape.tokens, k, v, self._specs)

    @property
    def added_tokens(self) -> int:
        """How many it stored, now that it is done: none if it was a repetition."""
        return self._request.shape.tokens if self._at_end else 0

    def roll_back(self) -> None:
        """Give the reserved bytes back."""
        self._store.release(self._reserved)
        self._reserved = 0

    def _check_repetition(self, page: Page) -> None:
        """Compare with what is stored; of an append larger than the window only its end still is."""
        shape = self._request.shape
        stop = self._position + shape.tokens
        first, _, _ = self._session.common_range(shape.layer, shape.layers)
        start = max(self._position, first)
        stored = self._session.read(shape.layer, shape.layer + shape.layers, start, stop, self._backend)
        kept = page.slice(slice(None), slice(start - self._position, None))
        if not same_bytes(stored, kept, self._backend):
            raise self._session.conflict(shape)

    def _non_finite(self, name: str, row: int) -> NonFinite:
        shape = self._request.shape
        layer, head, token = np.unravel_index(row, (shape.layers, shape.kv_heads, shape.tokens))
        place = {"layer": shape.layer + int(layer), "head": int(head), "token": int(token)}
        return NonFinite(name, consequence="; nothing was stored", **place)


def _page_aligned_slices(position: int, tokens: int) -> Iterator[slice]:
    """Parts of an append that each fill a page, the first from where the stored tokens end.

    What is beyond the last full page goes with it: by itself it would be kept as a view, and with it all of the append.
    """
    start = 0
    end = PAGE_TOKENS - position % PAGE_TOKENS
    while end + PAGE_TOKENS <= tokens:
        yield slice(start, end)
        start, end = end, end + PAGE_TOKENS
    yield slice(start, tokens)
