"""Reading request bodies: buffers, their reuse, and rejections before anything is allocated."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from starlette.requests import ClientDisconnect, Request

from hadakv_service.errors import BodyTooLarge, MalformedBody
from hadakv_service.http.request_body import IDLE_NBYTES, SMALL_BODY_NBYTES, BodyReader, ReceiveBufferPool
from hadakv_service.wire.serialization import Buffer

LIMIT = 1 << 20


def address(buffer: Buffer) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def request(chunks: Sequence[bytes], declared: str | None = None, *, whole: bool = True) -> Request:
    """Make a request whose body arrives in these chunks. Without `whole` the client disconnects after them."""
    headers = [] if declared is None else [(b"content-length", declared.encode("latin-1"))]

    def messages() -> Iterator[dict[str, Any]]:
        for number, chunk in enumerate(chunks, 1):
            more = number < len(chunks) or not whole
            yield {"type": "http.request", "body": chunk, "more_body": more}
        yield {"type": "http.disconnect"}

    arriving = messages()

    async def receive() -> dict[str, Any]:
        return next(arriving)

    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def received(reader: BodyReader, arriving: Request) -> tuple[bytes, int]:
    """Read a body. Return its bytes and their address."""

    async def read() -> tuple[bytes, int]:
        async with reader.read(arriving) as body:
            return bytes(body), address(body) if len(body) else 0

    return asyncio.run(read())


def next_chunk(arriving: Request) -> bytes:
    """Receive the next chunk of a body."""

    async def receive() -> bytes:
        chunk: bytes = (await arriving.receive())["body"]
        return chunk

    return asyncio.run(receive())


def large(byte: int = 7, nbytes: int = SMALL_BODY_NBYTES + 1000) -> list[bytes]:
    """Return the chunks of a body larger than SMALL_BODY_NBYTES."""
    return [bytes([byte]) * 1000] * (nbytes // 1000) + [bytes([byte]) * (nbytes % 1000)]


# The pool


def test_pool_leases_smallest_idle_buffer_that_fits() -> None:
    pool = ReceiveBufferPool()
    leased = {nbytes: pool.lease(nbytes) for nbytes in (1000, 3000, 2000)}
    for buffer in leased.values():
        pool.give_back(buffer)

    again = pool.lease(1500)

    assert address(again) == address(leased[2000])


def test_leased_buffer_is_not_leased_again() -> None:
    pool = ReceiveBufferPool()
    pool.give_back(pool.lease(1000))

    first, second = pool.lease(1000), pool.lease(1000)

    assert address(first) != address(second)


def test_small_lease_does_not_take_a_much_larger_buffer() -> None:
    pool = ReceiveBufferPool()
    pool.give_back(pool.lease(1 << 20))

    small = pool.lease(1000)

    assert len(small) == 1000


def test_pool_drops_oldest_idle_buffers_above_limit() -> None:
    pool = ReceiveBufferPool()
    part = IDLE_NBYTES // 4
    for buffer in [pool.lease(part + i) for i in range(6)]:
        pool.give_back(buffer)

    # The oldest were dropped, so the newest can still be leased.
    newest = [pool.lease(part) for _ in range(3)]

    assert sorted(map(len, newest)) == [part + 3, part + 4, part + 5]


def test_pool_does_not_keep_a_buffer_above_the_limit() -> None:
    pool = ReceiveBufferPool()
    pool.give_back(pool.lease(1000))
    pool.give_back(pool.lease(IDLE_NBYTES + 1))

    assert len(pool.lease(IDLE_NBYTES // 2)) == IDLE_NBYTES // 2


# Reading


@pytest.mark.parametrize("declared", ["6", None])
@pytest.mark.parametrize("chunks", [[b"abcdef"], [b"abc", b"def"], [b"", b"abcdef", b""], [b"a"] * 3 + [b"def"[:0]]])
def test_small_body_is_read_completely(chunks: list[bytes], declared: str | None) -> None:
    body, _ = received(BodyReader(LIMIT), request(chunks, declared))

    assert body == b"".join(chunks)


@pytest.mark.parametrize("declared", ["0", None])
def test_body_without_bytes_is_empty(declared: str | None) -> None:
    body, _ = received(BodyReader(LIMIT), request([b""], declared))

    assert body == b""


def test_small_body_in_one_chunk_is_not_copied() -> None:
    piece = b"x" * 1000

    _, where = received(BodyReader(LIMIT), request([piece], "1000"))

    assert where == address(piece)


@pytest.mark.parametrize("declared", [True, False])
def test_large_body_is_read_completely(declared: bool) -> None:
    chunks = [bytes([number % 251]) * 999 for number in range(200)]
    length = str(sum(map(len, chunks))) if declared else None

    body, _ = received(BodyReader(LIMIT), request(chunks, length))

    assert body == b"".join(chunks)


def test_next_large_body_reuses_the_buffer() -> None:
    reader = BodyReader(LIMIT)
    nbytes = SMALL_BODY_NBYTES + 1000

    first, where = received(reader, request(large(1), str(nbytes)))
    second, there = received(reader, request(large(2, nbytes - 500), str(nbytes - 500)))

    assert where == there
    assert (first, second) == (b"\x01" * nbytes, b"\x02" * (nbytes - 500))


def test_concurrent_bodies_have_different_buffers() -> None:
    reader = BodyReader(LIMIT)
    nbytes = SMALL_BODY_NBYTES + 1000
    received(reader, request(large(), str(nbytes)))

    async def both() -> tuple[bytes, bytes]:
        async with (
            reader.read(request(large(1), str(nbytes))) as one,
            reader.read(request(large(2), str(nbytes))) as two,
        ):
            return bytes(one), bytes(two)

    assert asyncio.run(both()) == (b"\x01" * nbytes, b"\x02" * nbytes)


def test_buffer_is_not_reused_after_an_error_in_the_block() -> None:
    reader = BodyReader(LIMIT)
    nbytes = SMALL_BODY_NBYTES + 1000

    held: list[Buffer] = []

    async def fail() -> None:
        async with reader.read(request(large(1), str(nbytes))) as body:
            held.append(body)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        asyncio.run(fail())
    _, where = received(reader, request(large(2), str(nbytes)))

    assert where != address(held[0])
    assert bytes(held[0]) == b"\x01" * nbytes


# Rejections


@pytest.mark.parametrize("declared", [str(LIMIT + 1), "9" * 30])
def test_content_length_over_limit_is_rejected_before_reading(declared: str) -> None:
    arriving = request([b"x"], declared)

    with pytest.raises(BodyTooLarge) as rejected:
        received(BodyReader(LIMIT), arriving)

    assert rejected.value.fields == {"limit": LIMIT}
    assert next_chunk(arriving) == b"x", "it is still to be read"


def test_chunked_body_is_rejected_once_over_the_limit() -> None:
    arriving = request([bytes(LIMIT), b"x", b"never read"])

    with pytest.raises(BodyTooLarge):
        received(BodyReader(LIMIT), arriving)

    assert next_chunk(arriving) == b"never read"


@pytest.mark.parametrize("declared", [True, False])
def test_body_of_exactly_the_limit_is_read(declared: bool) -> None:
    chunks = [bytes(LIMIT // 4)] * 4

    body, _ = received(BodyReader(LIMIT), request(chunks, str(LIMIT) if declared else None))

    assert len(body) == LIMIT


@pytest.mark.parametrize("declared", ["-1", "ten", "", "1.5", "+3", " 3", "0x3", "²"])
def test_content_length_that_is_not_a_number_is_rejected(declared: str) -> None:
    with pytest.raises(MalformedBody):
        received(BodyReader(LIMIT), request([b"abc"], declared))


@pytest.mark.parametrize("nbytes", [10, SMALL_BODY_NBYTES + 1000])
@pytest.mark.parametrize("declared", [True, False])
def test_interrupted_body_raises_client_disconnect(nbytes: int, declared: bool) -> None:
    chunks = large(3, nbytes)[:-1]

    with pytest.raises(ClientDisconnect):
        received(BodyReader(LIMIT), request(chunks, str(nbytes) if declared else None, whole=False))


def test_body_shorter_than_content_length_is_a_disconnect() -> None:
    nbytes = SMALL_BODY_NBYTES + 1000

    with pytest.raises(ClientDisconnect):
        received(BodyReader(LIMIT), request(large(3, nbytes)[:-1], str(nbytes)))
