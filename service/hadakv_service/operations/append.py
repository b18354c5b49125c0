"""AppendOperation: check, reserve, encode and store an append."""

from collections.abc import Collection, Generator, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import HEAD_DIMS, Backend, Codec, CodecSpec, Encoded, Stream
from hadakv_service.device.jobs import ChunkedJob, run_to_completion
from hadakv_service.errors import InvalidRequest, NonFinite
from hadakv_service.operations.write_operation import WriteOperation
from hadakv_service.sessions.layer_run import PAGE_TOKENS, same_bytes
from hadakv_service.sessions.page import Page, first_non_finite, on_host
from hadakv_service.sessions.session import FLOAT16_NBYTES, MAX_LAYERS, Session, Shape
from hadakv_service.storage.session_store import Key, SessionStore
from hadakv_service.wire import messages

# Maximum bytes of K and V of an append that runs on the event loop's thread. The CPU encodes them in some 50 µs.
SHORT_NBYTES = 64 << 10
INPUT_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class AppendOutcome:
    """Result of an append.

    Attributes:
        created: whether the append created the session.
        position: position of the first token.
        tokens: number of tokens.
        k: encoded K in host memory.
        v: encoded V in host memory.
        specs: codecs of K and V.
    """

    created: bool
    position: int
    tokens: int
    k: Encoded
    v: Encoded
    specs: tuple[CodecSpec, CodecSpec]


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """Parameters of an append, checked without the session.

    Attributes:
        k: view of the request body, `[layers, kv_heads, tokens, head_dim]`.
        v: view of the request body, with the axes and the dtype of `k`.
        shape: axes of the tensors, and where they are stored.
        codecs: requested codecs of K and V; None for those of the session.
    """

    k: NDArray[Any]
    v: NDArray[Any]
    shape: Shape
    codecs: tuple[Codec, Codec] | None

    @classmethod
    def from_body(cls, body: messages.AppendBody) -> "AppendRequest":
        """Check everything that can be checked without the session.

        Raises:
            InvalidRequest: the tensors are malformed, differ in shape or dtype, or have an unsupported head_dim.
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


class AppendOperation(WriteOperation, ChunkedJob[AppendOutcome]):
    """Store an append in its session, all of it or nothing.

    Args:
        key: key of the session.
        request: tokens to append.
        store: store of the session.
        backend: backend that encodes the tokens.
        new: session without tokens, if there is none yet.
    """

    def __init__(self, key: Key, request: AppendRequest, store: SessionStore, backend: Backend, new: Session) -> None:
        self.key: Hashable = key
        self._nbytes: int | None = None
        self._key = key
        self._request = request
        self._store = store
        self._backend = backend
        self._new = new

    @property
    def is_short(self) -> bool:
        """Whether the append is small, is encoded by the CPU, and needs no disk. See `ShortJob.is_short`."""
        k, v, shape = self._request.k, self._request.v, self._request.shape
        nbytes = k.nbytes + v.nbytes
        rows = 2 * shape.layers * shape.kv_heads * shape.tokens
        return (
            nbytes <= SHORT_NBYTES
            and self._backend.encodes_on_cpu(rows)
            and self._store.can_append_in_memory(self._key, shape, nbytes)
        )

    @property
    def nbytes(self) -> int:  # type: ignore[override]  # computed on first use
        """Bytes of the tensors, and of stored pages that must be split for them."""
        if self._nbytes is None:
            self._nbytes = self._request.k.nbytes + self._request.v.nbytes
            # `prepare` reports any error.
            with suppress(Exception):
                if record := self._store.find(self._key):
                    shape = self._request.shape
                    self._nbytes += record.session.split_runs_nbytes(shape.layer, shape.layers)
        return self._nbytes

    def prepare(self, batch: Collection[Hashable]) -> Sequence[Stream]:
        """Check the append against the session and reserve memory. Return the streams of K and V."""
        shape = self._request.shape
        record = self._store.find(self._key)
        self._created = record is None
        session = record.session if record else self._new
        self._session = session.with_shape(shape, self._request.codecs)
        self._position, self._is_at_end = self._session.append_position(shape)
        self._specs = self._session.specs
        if self._is_at_end:
            slices_nbytes = self._session.split_runs_nbytes(shape.layer, shape.layers)
            self._session = self._session.split_runs(shape.layer, shape.layers)
            rows = shape.layers * shape.kv_heads * shape.tokens
            nbytes = rows * sum(spec.nbytes for spec in self._specs)
            self._added_nbytes = rows * shape.head_dim * 2 * FLOAT16_NBYTES, nbytes
            self._reservation = self._store.reserve(
                self._key,
                self._session,
                batch,
                nbytes=nbytes,
                pages=self._session.new_pages(shape.layer, shape.layers, shape.tokens),
                slices_nbytes=slices_nbytes,
            )
        k_spec, v_spec = self._specs
        return Stream(self._request.k, k_spec), Stream(self._request.v, v_spec)

    def complete(self, encoded: Sequence[Encoded]) -> AppendOutcome:
        """Store the encoded tokens, unless they are not finite or are stored already."""
        return run_to_completion(self.complete_chunked(encoded))

    def complete_chunked(self, encoded: Sequence[Encoded]) -> Generator[None, None, AppendOutcome]:
        """Store the encoded tokens in chunks of a page. The last chunk commits them."""
        page = Page(*encoded)
        for name, stream, spec in zip("kv", encoded, self._specs, strict=True):
            if not self._backend.all_finite(stream, spec):
                raise self._non_finite(name, first_non_finite(on_host(stream, self._backend), spec))
        if self._is_at_end:
            assert self._reservation
            session = self._session
            for tokens in _page_aligned_slices(self._position, page.tokens):
                # Use a page that fits as it is. A view would be one more array to keep.
                part = page if tokens == slice(0, page.tokens) else page.slice(slice(None), tokens)
                session = session.append(self._request.shape.layer, part, self._backend)
                yield
            yield from self._store.commit(self._reservation, session)
        else:
            self._check_repetition(page)
            # The session may have expired meanwhile. `touch` does nothing then.
            self._store.touch(self._key)
        k, v = (on_host(stream, self._backend) for stream in encoded)
        return AppendOutcome(self._created, self._position, self._request.shape.tokens, k, v, self._specs)

    @property
    def added_tokens(self) -> int:
        """Number of tokens that were stored: 0 for a repetition."""
        return self._request.shape.tokens if self._is_at_end else 0

    @property
    def added_nbytes(self) -> tuple[int, int]:
        """Bytes of the tokens that were stored, of K and V together: as float16, and packed."""
        return self._added_nbytes if self._is_at_end else (0, 0)

    def _check_repetition(self, page: Page) -> None:
        """Compare the append with stored tokens. Only the end of an append larger than the window is stored."""
        shape = self._request.shape
        stop = self._position + shape.tokens
        first, _, _ = self._session.common_range(shape.layer, shape.layers)
        start = max(self._position, first)
        stored = self._session.read(shape.layer, shape.layer + shape.layers, start, stop, self._backend)
        repeated = page.slice(slice(None), slice(start - self._position, None))
        if not same_bytes(stored, repeated, self._backend):
            raise self._session.conflict(shape)

    def _non_finite(self, name: str, row: int) -> NonFinite:
        shape = self._request.shape
        layer, head, token = np.unravel_index(row, (shape.layers, shape.kv_heads, shape.tokens))
        place = {"layer": shape.layer + int(layer), "head": int(head), "token": int(token)}
        return NonFinite(name, consequence="; nothing was stored", **place)


def _page_aligned_slices(position: int, tokens: int) -> Iterator[slice]:
    """Yield parts of an append that each fill a page. The first one fills up the last stored page.

    Tokens after the last full page belong to the part before them. As a part of their own they would be stored as a
    view, which keeps the memory of the whole append.
    """
    start = 0
    end = PAGE_TOKENS - position % PAGE_TOKENS
    while end + PAGE_TOKENS <= tokens:
        yield slice(start, end)
        start, end = end, end + PAGE_TOKENS
    yield slice(start, tokens)
