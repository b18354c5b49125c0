"""Send large responses within the sending budget: at once, or piece by piece while their tensors are made."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hadakv_service.asgi_extensions import is_disconnected
from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.http.content import MSGPACK, MsgpackResponse
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.range_tensor import PIECE_NBYTES
from hadakv_service.storage.pages.held_pages import HeldPages, PageHold
from hadakv_service.wire.sending_budget import SendingBudget, Share
from hadakv_service.wire.serialization import Buffer, Deferred, encode_with_deferred, split

# Pieces of one response in memory: one that the connection sends, one that waits for that, and the next.
PIECES_IN_MEMORY = 3
# A response of at most this size is made at once.
WHOLE_NBYTES = 2 * PIECE_NBYTES
# A connection takes more messages while it has at most this much to send: asyncio's default.
TAIL_NBYTES = 64 * 1024

T = TypeVar("T")


@contextmanager
def released_on_error(share: Share | None) -> Iterator[None]:
    """Release a share if the block fails. Otherwise the response releases it when it is sent."""
    try:
        yield
    except BaseException:
        if share:
            share.release()
        raise


async def prepare_with_share(
    budget: SendingBudget,
    prepare: Callable[[Share | None], Awaitable[T]],
    nbytes: Callable[[T], int],
    share: Share | None = None,
) -> tuple[T, Share | None]:
    """Prepare a response, and take its share.

    While it waits for the share, it keeps nothing that it has prepared: the pages of a session that is deleted
    meanwhile would count nowhere. It is prepared anew instead.

    Args:
        budget: counts the memory of responses.
        prepare: makes the response, or what it is made of. Called with the present share.
        nbytes: returns the bytes that the response needs; 0 if the present share is enough.
        share: share to begin with, which is released on an error.

    Raises:
        Busy: there was no memory in time.
    """
    while True:
        with released_on_error(share):
            prepared = await prepare(share)
        needed = nbytes(prepared)
        if needed <= (share.nbytes if share else 0):
            return prepared, share
        if share:
            share.release()
        if share := budget.try_acquire(needed):
            return prepared, share
        del prepared
        share = await budget.acquire(needed)


class CountedResponse(MsgpackResponse):
    """Msgpack response that is sent from memory, and releases its share then.

    Args:
        content: the response.
        share: its share of the sending budget; None if it is small.
        headers: further headers.
    """

    def __init__(
        self, content: Mapping[str, object], share: Share | None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, headers=headers)
        self._share = share

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        if self._share is None:
            await super().__call__(scope, receive, send)
        else:
            await send_counted(send, self.status_code, self.raw_headers, self.chunks, self._share)


async def send_counted(
    send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], chunks: Sequence[Buffer], share: Share
) -> None:
    """Send a response from memory. Release its share when the connection has sent it, except for its last bytes."""

    async def parts() -> AsyncIterator[Buffer]:
        for chunk in chunks:
            for part in split(chunk):
                yield part

    try:
        nbytes = sum(map(len, chunks))
        share.shrink(nbytes)
        await _send_drained(send, status, headers, parts(), nbytes)
    finally:
        share.release()


async def _send_drained(
    send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], parts: AsyncIterator[Buffer], nbytes: int
) -> None:
    """Send a response, and wait until the connection has sent nearly all of it.

    Args:
        send: ASGI send function. It waits until the connection has sent most of the earlier messages.
        status: HTTP status.
        headers: response headers.
        parts: the body.
        nbytes: size of the body.
    """
    await send({"type": "http.response.start", "status": status, "headers": headers})
    remaining = nbytes
    async for part in parts:
        # The connection may keep the last bytes for long. Copy them: a view would keep all of the part in memory.
        cut = max(0, min(len(part), remaining - TAIL_NBYTES))
        for body in (part[:cut], bytes(part[cut:])):
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        remaining -= len(part)
    if remaining in (0, nbytes):
        # Complete, or without a body, as the response to a HEAD request.
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class DeferredResponse(Response):
    """Msgpack response whose tensors are made while it is sent. Only a few pieces are in memory at a time.

    Create it with `open`.
    """

    media_type = MSGPACK

    def __init__(
        self,
        content: Mapping[str, object],
        device: DeviceExecutor,
        hold: PageHold,
        share: Share,
    ) -> None:
        self._chunks = encode_with_deferred(content)
        self._device = device
        self._hold = hold
        self._share = share
        self._nbytes = sum(map(len, self._chunks))
        super().__init__(headers={"content-length": str(self._nbytes)})

    @staticmethod
    def needed_nbytes(pages: Sequence[Page]) -> int:
        """Return the share that a response made of these pages needs until they are loaded, bytes."""
        return PIECES_IN_MEMORY * PIECE_NBYTES + sum(page.nbytes for page in pages if not page.is_resident)

    @classmethod
    async def open(
        cls,
        scope: Scope,
        content: Mapping[str, object],
        pages: Sequence[Page],
        held: HeldPages,
        device: DeviceExecutor,
        share: Share,
    ) -> "DeferredResponse":
        """Load the pages before anything is sent.

        Args:
            scope: ASGI scope of the request.
            content: the response, with deferred tensors.
            pages: pages that the tensors are made of.
            held: counts held pages.
            device: device that makes the tensors.
            share: its share, `needed_nbytes` or more. It is released on an error.

        Raises:
            Busy: the device queue is full.
            SessionCorrupt, StorageUnavailable: a page cannot be loaded.
            ClientDisconnect: the client has closed the connection.
        """
        hold = PageHold(held, pages)
        try:
            while await device.call(hold.extend):
                if is_disconnected(scope):
                    raise ClientDisconnect
            # The pool counts the loaded pages from here on.
            share.shrink(PIECES_IN_MEMORY * PIECE_NBYTES)
            return cls(content, device, hold, share)
        except BaseException:
            release_pages(device, hold, share)
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the response. Stop if the client has disconnected."""
        try:
            if scope["method"] == "HEAD":
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": b""})
                return
            async with aclosing(self._pieces(scope)) as pieces:
                await _send_drained(send, self.status_code, self.raw_headers, pieces, self._nbytes)
        finally:
            release_pages(self._device, self._hold, self._share)

    async def _pieces(self, scope: Scope) -> AsyncGenerator[Buffer, None]:
        """Yield the body. The device makes the next piece while one is sent."""
        makers = self._makers()
        upcoming: asyncio.Future[Buffer] | None = self._start(next(makers))
        try:
            while upcoming is not None and not is_disconnected(scope):
                piece = await upcoming
                maker = next(makers, None)
                upcoming = None if maker is None else self._start(maker)
                yield piece
        finally:
            if upcoming is not None:
                upcoming.cancel()

    def _makers(self) -> Iterator[Callable[[], Buffer]]:
        for chunk in self._chunks:
            if isinstance(chunk, Deferred):
                yield from chunk.pieces()
            elif chunk:
                yield partial(bytes, chunk)

    def _start(self, maker: Callable[[], Buffer]) -> "asyncio.Future[Buffer]":
        return asyncio.ensure_future(self._device.call_unbounded(maker))


def release_pages(device: DeviceExecutor, hold: PageHold, share: Share) -> None:
    """Release the pages on the device thread, and then the share that counts for them. Do not wait for it."""
    done = asyncio.ensure_future(device.call_unbounded(hold.release))
    done.add_done_callback(lambda _: share.release())


class CountedStream(Response):
    """Streamed response. It calls a function once it is sent or has failed.

    Args:
        content: yields the body.
        nbytes: size of the body.
        close: called once the response is sent or has failed.
        headers: response headers.
        media_type: content type.
    """

    def __init__(
        self,
        content: AsyncIterator[Buffer],
        nbytes: int,
        close: Callable[[], object],
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        super().__init__(headers={**headers, "content-length": str(nbytes)}, media_type=media_type)
        self._content = content
        self._nbytes = nbytes
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the response. Stop if the client has disconnected."""
        try:
            async with aclosing(self._parts(scope)) as parts:
                await _send_drained(send, self.status_code, self.raw_headers, parts, self._nbytes)
        finally:
            self._close()

    async def _parts(self, scope: Scope) -> AsyncGenerator[Buffer, None]:
        if scope["method"] == "HEAD":
            return
        async for part in self._content:
            if is_disconnected(scope):
                return
            yield part
