"""Sessions and the codec alone, through the real clients; and how a client is shared and finds the real service."""

import asyncio
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from hadakv_client import (
    AsyncClient,
    Client,
    Codec,
    ConnectionLost,
    NotFound,
    Retries,
    SessionNotFound,
)
from hadakv_kernels import reference
from hadakv_service.spawn import running_service
from support.codecs import CODECS, assert_same

pytestmark = pytest.mark.every_backend


def test_a_created_session_is_described(client: Any, session_id: str) -> None:
    session = client.session(session_id, {"bits": 3})

    info = session.create(layers=2, kv_heads=3, head_dim=64, window=8, ttl_seconds=600)

    assert info.session == session.id == session_id
    assert info.codec == (Codec(bits=3), Codec(bits=3))
    assert (info.kv_heads, info.head_dim, info.window, info.ttl_seconds) == (3, 64, 8, 600)
    assert (info.layers, info.length, info.nbytes, info.raw_nbytes) == ((), 0, 0, 0)
    assert info.expires is not None
    assert info.expires > info.created
    assert session.info().session == session_id


def test_a_session_that_decided_nothing_is_described_and_read(session: Any) -> None:
    info = session.create()

    assert (info.codec, info.kv_heads, info.head_dim) == (None, None, None)
    assert session.read().k.packed.shape == (0, 0, 0, 0)
    assert session.read(form="bfloat16").v.shape == (0, 0, 0, 0)


def test_a_window_keeps_the_last_tokens(session: Any, k: Any, v: Any) -> None:
    session.create(window=4)
    session.append(k, v)
    session.append(v, k)

    found = session.read()

    assert (found.start, found.stop) == (6, 10)
    assert_same(found.k, reference.encode(np.ascontiguousarray(v[:, :, 1:]), Codec().at(64)))
    assert session.info().layers == ((0, 6, 10), (1, 6, 10))


def test_a_session_is_there_until_it_is_deleted(session: Any, k: Any, v: Any) -> None:
    session.append(k, v)

    session.delete()

    for look in (session.info, session.read, session.delete):
        with pytest.raises(SessionNotFound):
            look()
    assert session.append(k, v).position == 0


def test_sessions_are_listed_over_many_pages(client: Any, session_id: str) -> None:
    names = [f"{session_id[-100:]}:{i:03}" for i in range(230)]
    for name in names:
        client.session(name).create()

    listed = list(client.sessions(session_id[-100:] + ":"))

    assert [info.session for info in listed] == names


def test_no_sessions_are_no_pages(client: Any) -> None:
    assert list(client.sessions("nobody-has-this")) == []


@pytest.mark.parametrize("codec", [*CODECS, {"bits": 5}, None], ids=str)
def test_encoding_and_decoding_need_no_session(client: Any, k: Any, codec: Any) -> None:
    exact = codec if isinstance(codec, Codec) else Codec.from_mapping(codec or {})

    encoded = client.encode(k[0], codec)
    decoded = client.decode(encoded, codec, 64, "bfloat16")

    assert_same(encoded, reference.encode(k[0], exact.at(64)))
    assert_same(decoded, reference.decode(encoded, exact.at(64), "bfloat16"))


def test_what_the_codec_saw_can_be_asked_for(client: Any, k: Any) -> None:
    seen = client.encode(k, {"bits": 2}, diagnostics=True)

    expected = reference.diagnose(k, Codec(bits=2).at(64))
    assert_same(seen.encoded, expected.encoded)
    assert_same(seen.scaled, expected.scaled)
    assert_same(seen.rms, expected.rms)


def test_a_service_is_healthy_and_ready(client: Any) -> None:
    assert client.healthy()
    assert client.ready()


# One client for many, and where it finds the service


def test_several_threads_share_a_client(server: Any, session_id: str, k: Any, v: Any) -> None:
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


def test_many_tasks_share_an_asynchronous_client(server: Any, session_id: str, k: Any, v: Any) -> None:
    async def write(client: AsyncClient, task: int) -> int:
        session = client.session(f"{session_id}:{task}")
        for _ in range(3):
            await session.append(k, v, minimal=True)
        return (await session.info()).length

    async def write_all() -> list[int]:
        async with AsyncClient(server.url) as client:
            return await asyncio.gather(*(write(client, task) for task in range(16)))

    assert asyncio.run(write_all()) == [15] * 16


def test_an_upload_takes_no_memory_to_speak_of(connect: Any, server: Any, session_id: str) -> None:
    x = np.ones((1, 8, 2048, 512), np.float16)
    session = connect(server.url).session(session_id, {"kind": "float16"})
    session.append(x[:, :, :1], x[:, :, :1])
    tracemalloc.start()

    session.append(x, x, minimal=True)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    session.delete()
    assert peak < x.nbytes // 4


def test_another_path_of_the_same_server_is_no_service(connect: Any, server: Any) -> None:
    client = connect(server.url + "/api/")

    with pytest.raises(NotFound):
        client.session("a").info()
    assert not client.healthy()


def test_a_unix_socket_is_as_good(connect: Any, tmp_path: Path, k: Any, v: Any) -> None:
    path = str(tmp_path / "s")
    command = [sys.executable, "-m", "hadakv_service", "--uds", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        assert path in service.stdout.readline()

        placed = connect("http://hadakv", uds=path, retries=Retries(0)).session("a").append(k, v)
        read = connect(f"unix:{path}", retries=Retries(0)).session("a").read()

        service.terminate()
    assert placed.length == 5
    assert read.stop == 5


def test_a_file_says_who_vouches_for_the_service(connect: Any, tmp_path: Path, k: Any, v: Any) -> None:
    authority, (served, own, other) = trustme.CA(), (tmp_path / name for name in ("served", "own", "other"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(served)
    authority.cert_pem.write_to_path(own)
    trustme.CA().cert_pem.write_to_path(other)

    with running_service("--tls-cert", str(served)) as service:
        placed = connect(service.url, ca_file=own).session("a").append(k, v)
        with pytest.raises(ConnectionLost, match=f"at {service.url}: .*CERTIFICATE_VERIFY_FAILED"):
            connect(service.url, ca_file=str(other), retries=0).session("a").info()

    assert placed.length == 5


def test_a_file_says_who_vouches_for_the_service_at_a_unix_socket_too(
    connect: Any, tmp_path: Path, k: Any, v: Any
) -> None:
    authority, (served, own, path) = trustme.CA(), (tmp_path / name for name in ("served", "own", "s"))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(served)
    authority.cert_pem.write_to_path(own)
    command = [sys.executable, "-m", "hadakv_service", "--uds", str(path), "--tls-cert", str(served)]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            assert str(path) in service.stdout.readline()
            placed = connect("https://localhost", uds=str(path), ca_file=own, retries=0).session("a").append(k, v)
            with pytest.raises(ConnectionLost, match="CERTIFICATE_VERIFY_FAILED"):
                connect("https://localhost", uds=str(path), retries=0).session("a").info()
        finally:
            service.terminate()

    assert placed.length == 5


def test_what_a_client_can_never_use_is_said_when_it_is_made(connect: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    whole = trustme.CA().cert_pem.bytes()
    (tmp_path / "broken").write_bytes(whole + whole[: len(whole) // 2])

    with pytest.raises(ValueError, match=r"the URL must be like .* not 'unix:/a'"):
        connect("unix:/a", uds="/b")
    with pytest.raises(ValueError, match="empty has no certificate in PEM"):
        connect("https://localhost", ca_file=tmp_path / "empty")
    with pytest.raises(ValueError, match=r"broken cannot be used: .*PEM lib"):
        connect("https://localhost", ca_file=tmp_path / "broken")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        connect("https://localhost", ca_file="nowhere")
