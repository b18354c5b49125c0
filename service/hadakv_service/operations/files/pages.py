"""Pages of a session file, in both versions: read, check and yield one after another."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import CodecSpec, Encoded
from hadakv_service.errors import FileCorrupt, InvalidRequest, MalformedBody
from hadakv_service.operations.files import layout
from hadakv_service.operations.files.elements import check_elements
from hadakv_service.operations.files.layout import DIGEST_NBYTES, FilePage, Part
from hadakv_service.operations.files.parse import FileHeader
from hadakv_service.operations.files.source import HashingReader
from hadakv_service.operations.files.spool import Spool
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.storage.disk.interface import PageContent

DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype(np.uint8), "F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}


class RunPage(NamedTuple):
    """A page of at most `PAGE_TOKENS` tokens, in host memory.

    Attributes:
        run: index of its run.
        content: K and V.
    """

    run: int
    content: PageContent

    @property
    def nbytes(self) -> int:
        """Bytes of K and V."""
        return sum(stream.packed.nbytes + stream.norms.nbytes for stream in self.content)


class PageReader(Protocol):
    """The pages of a file."""

    def pages(self) -> AsyncGenerator[RunPage, None]:
        """Yield the pages of each run in order. The file is known to be intact after the last one.

        Raises:
            MalformedBody: the file is truncated or has trailing bytes.
            InvalidRequest: an element is none that the codec can produce.
            FileCorrupt: the bytes do not match the digest.
        """
        ...


class PagedReader:
    """Reader of a file of version 2. It needs memory for one page of the file.

    Args:
        header: header of the file.
        reader: reads the bytes after the header.
    """

    def __init__(self, header: FileHeader, reader: HashingReader) -> None:
        self._header = header
        self._reader = reader

    async def pages(self) -> AsyncGenerator[RunPage, None]:
        """See `PageReader`. A file that is corrupt and invalid is reported as corrupt."""
        invalid: InvalidRequest | None = None
        for page in layout.file_pages(self._header.paged_spans):
            streams = await self._read(page)
            if invalid is None:
                try:
                    await asyncio.to_thread(self._check, page, streams)
                except InvalidRequest as error:
                    invalid = error
                else:
                    for start in range(0, page.tokens, PAGE_TOKENS):
                        yield RunPage(page.run, PageContent(*(_tokens(stream, start) for stream in streams)))
            # Free the page before the next one is received.
            del streams
        await self._check_digest()
        if invalid:
            raise invalid

    async def _read(self, page: FilePage) -> list[Encoded]:
        """Read K and V of a page into one buffer, as they are in the file."""
        parts = page.stream_parts(self._header.session)
        memory = np.empty(sum(part.nbytes for stream in parts for part in stream), np.uint8)
        await self._reader.read(memory.data)
        return [_to_stream(arrays) for arrays in _views(memory, parts)]

    def _check(self, page: FilePage, streams: list[Encoded]) -> None:
        for name, stream, spec in zip("kv", streams, self._header.session.specs, strict=True):
            check_elements(stream, spec, [f"{page.name}.{name}"])

    async def _check_digest(self) -> None:
        expected = await self._reader.digest()
        found = bytearray(DIGEST_NBYTES)
        await self._reader.read(memoryview(found))
        if not await self._reader.at_end():
            raise MalformedBody("The file has trailing bytes.")
        if found != expected:
            raise FileCorrupt(
                f"The file is corrupt: its SHA-256 is {expected.hex()}, the digest at its end is {found.hex()}. "
                "Nothing was stored."
            )


class LayeredReader:
    """Reader of a file of version 1, which is stored temporarily.

    Args:
        header: header of the file.
        reader: reads the bytes after the header.
        spool: place for these bytes.
    """

    def __init__(self, header: FileHeader, reader: HashingReader, spool: Spool) -> None:
        self._header = header
        self._reader = reader
        self._spool = spool

    async def pages(self) -> AsyncGenerator[RunPage, None]:
        """See `PageReader`. The file has no digest."""
        await self._spool.receive(self._reader, self._header.data_nbytes)
        if not await self._reader.at_end():
            raise MalformedBody("The file has trailing bytes.")
        for run, first, start in self._starts():
            yield await asyncio.to_thread(self._page, run, first, start)

    def _starts(self) -> Iterator[tuple[int, int, int]]:
        """Yield index of the run, its first layer, and first token of each page."""
        first = 0
        for run, span in enumerate(self._header.spans):
            for start in range(0, span.tokens, PAGE_TOKENS):
                yield run, first, start
            first += span.layers

    def _page(self, run: int, first: int, start: int) -> RunPage:
        span, session = self._header.spans[run], self._header.session
        streams = []
        for name, spec in zip("kv", session.specs, strict=True):
            layers = [self._stream(first + layer, name, spec, span.tokens, start) for layer in range(span.layers)]
            names = [f"layers.{first + layer}.{name}" for layer in range(span.layers)]
            stream = Encoded(np.stack([each.packed for each in layers]), np.stack([each.norms for each in layers]))
            check_elements(stream, spec, names, start)
            streams.append(stream)
        return RunPage(run, PageContent(*streams))

    def _stream(self, layer: int, name: str, spec: CodecSpec, tokens: int, start: int) -> Encoded:
        """Read some tokens of K or V of a layer."""
        parts = layout.stream_parts(f"layers.{layer}.{name}", spec, (self._header.session.kv_heads or 0, tokens))
        return _to_stream([self._rows(part, start) for part in parts])

    def _rows(self, part: Part, start: int) -> NDArray[Any]:
        """Read the tokens of a page from a tensor `[kv_heads, tokens, ...]`."""
        assert self._header.offsets is not None
        heads, tokens, width = part.shape
        dtype, stop = DTYPES[part.dtype], min(start + PAGE_TOKENS, tokens)
        row_nbytes, at = width * dtype.itemsize, self._header.offsets[part.name]
        rows = [
            self._spool.read((stop - start) * row_nbytes, at + (head * tokens + start) * row_nbytes)
            for head in range(heads)
        ]
        return np.frombuffer(b"".join(rows), dtype).reshape(heads, stop - start, width)


def _views(memory: NDArray[np.uint8], streams: list[list[Part]]) -> Iterator[list[NDArray[Any]]]:
    """Yield the tensors of each stream as views of the bytes of a page."""
    at = 0
    for parts in streams:
        arrays = []
        for part in parts:
            arrays.append(memory[at : at + part.nbytes].view(DTYPES[part.dtype]).reshape(part.shape))
            at += part.nbytes
        yield arrays


def _to_stream(arrays: list[NDArray[Any]]) -> Encoded:
    """Return K or V from its tensors."""
    if len(arrays) == 1:
        (values,) = arrays
        return Encoded(values.view(np.uint8), np.empty((*values.shape[:-1], 0), np.float32))
    return Encoded(*arrays)


def _tokens(stream: Encoded, start: int) -> Encoded:
    """Return the tokens of a stored page, as views of a page of the file."""
    part = (slice(None), slice(None), slice(start, start + PAGE_TOKENS))
    return Encoded(stream.packed[part], stream.norms[part])
