"""Sessions, encode and decode through both clients, and clients shared by threads and tasks."""

import asyncio
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest

from hadakv_client import (
    AsyncClient,
    Client,
    Codec,
    SessionNotFound,
)
from hadakv_kernels import reference
from support.inputs.codecs import CODECS, assert_same

pytestmark = pytest.mark.every_backend


def test_create_returns_the_description(client: Any, session_id: str) -> None:
    session = client.session(session_id, {"bits": 3})

    info = session.create(layers=2, kv_heads=3, head_dim=64, window=8, ttl_seconds=600)

    assert info.session == session.id == session_id
    assert info.codec == (Codec(bits=3), Codec(bits=3))
    assert (info.kv_heads, info.head_dim, info.window, info.ttl_seconds) == (3, 64, 8, 600)
    assert [(span.layer, span.length) for span in info.layers] == [(0, 0), (1, 0)]
    assert (info.length, info.nbytes, info.raw_nbytes) == (0, 0, 0)
    assert info.expires is not None
    assert info.expires > info.created
    assert session.info().session == session_id


def test_session_without_options_can_be_read(session: Any) -> None:
    info = session.create()

    assert (info.codec, info.kv_heads, info.head_dim) == (None, None, None)
    assert session.read().k.packed.shape == (0, 0, 0, 0)
    assert session.read(form="bfloat16").v.shape == (0, 0, 0, 0)


def test_window_keeps_the_last_tokens(session: Any, k: Any, v: Any) -> None:
    session.create(window=4)
    session.append(k, v)
    session.append(v, k)

    found = session.read()

    assert (found.start, found.stop) == (6, 10)
    assert_same(found.k, reference.encode(np.ascontiguousarray(v[:, :, 1:]), Codec().at(64)))
    assert session.info().layers == ((0, 6, 10), (1, 6, 10))


def test_deleted_session_does_not_exist(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    session.delete()

    for look in (session.info, session.read, session.delete):
        with pytest.raises(SessionNotFound):
            look()
    assert session.append(k, v).position == 0


def test_list_fetches_several_pages(client: Any, session_id: str) -> None:
    names = [f"{session_id[-100:]}:{i:03}" for i in range(230)]
    for name in names:
        client.session(name).create()

    listed = list(client.sessions(session_id[-100:] + ":"))

    assert [info.session for info in listed] == names


def test_list_without_sessions_is_empty(client: Any) -> None:
    assert list(client.sessions("unused-prefix")) == []


@pytest.mark.parametrize("codec", [*CODECS, {"bits": 5}, None], ids=str)
def test_encode_and_decode_need_no_session(client: Any, k: Any, codec: Any) -> None:
    exact = codec if isinstance(codec, Codec) else Codec.from_mapping(codec or {})

    encoded = client.encode(k[0], codec)
    decoded = client.decode(encoded, codec, 64, "bfloat16")

    assert_same(encoded, reference.encode(k[0], exact.at(64)))
    assert_same(decoded, reference.decode(encoded, exact.at(64), "bfloat16"))


def test_encode_returns_diagnostics(client: Any, k: Any) -> None:
    result = client.encode(k, {"bits": 2}, diagnostics=True)

    expected = reference.diagnose(k, Codec(bits=2).at(64))
    assert_same(result.encoded, expected.encoded)
    assert_same(result.scaled, expected.scaled)
    assert_same(result.rms, expected.rms)


def test_service_is_healthy_and_ready(client: Any) -> None:
    assert client.healthy()
    assert client.ready()


def test_threads_can_share_a_client(server: Any, session_id: str, k: Any, v: Any) -> None:
    with Client(server.url) as client:

        def write(thread: int) -> None:
            session = client.session(f"{session_id}:{thread}")
            for _ in range(10):
                session.append(k, v, minimal=True)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [client.session(f"{session_id}:{i}").info().length for i in range(4)] == [50] * 4


def test_tasks_can_share_an_asynchronous_client(server: Any, session_id: str, k: Any, v: Any) -> None:
    async def write(client: AsyncClient, task: int) -> int:
        session = client.session(f"{session_id}:{task}")
        for _ in range(3):
            await session.append(k, v, minimal=True)
        return (await session.info()).length

    async def write_all() -> list[int]:
        async with AsyncClient(server.url) as client:
            return await asyncio.gather(*(write(client, task) for task in range(16)))

    assert asyncio.run(write_all()) == [15] * 16


def test_upload_needs_little_memory(connect: Any, server: Any, session_id: str) -> None:
    x = np.ones((1, 8, 2048, 512), np.float16)
    session = connect(server.url).session(session_id, {"kind": "float16"})
    session.append(x[:, :, :1], x[:, :, :1])
    tracemalloc.start()

    session.append(x, x, minimal=True)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    session.delete()
    assert peak < x.nbytes // 4
