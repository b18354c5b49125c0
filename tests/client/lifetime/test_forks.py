"""Clients and handles on both sides of a fork."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import trustme

from hadakv_client import AsyncClient, Client
from hadakv_client.http.connections import forks
from hadakv_service.testing import running_service
from support.processes import in_child, open_sockets

# Python warns when a process with several threads forks. Services with worker processes do that.
pytestmark = [pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]
FLOAT16 = {"kind": "float16"}


@pytest.fixture
def warm(server: Any) -> Iterator[Client]:
    """Return a synchronous client that has used a connection."""
    with Client(server.url, retries=0, timeout=20) as client:
        assert client.healthy()
        yield client


@pytest.fixture
def stored(warm: Client, session_id: str, rng: np.random.Generator) -> dict[str, Any]:
    """Return the keys of two sessions by session id."""
    keys = {f"{session_id}-{n}": rng.standard_normal((2, 2, 16, 64)).astype(np.float16) for n in range(2)}
    for name, k in keys.items():
        warm.session(name, FLOAT16).append(k, k)
    return keys


def wrong_reads(client: Client, name: str, k: Any, reads: int = 20) -> int:
    """Return how many reads of a session do not return its keys."""
    return sum(not np.array_equal(client.session(name).read(form="float16").k, k) for _ in range(reads))


def test_parent_and_child_read_their_own_sessions(warm: Client, stored: dict[str, Any]) -> None:
    (mine, mine_k), (its, its_k) = stored.items()

    for _ in range(5):
        child = in_child(lambda: wrong_reads(warm, its, its_k))
        assert wrong_reads(warm, mine, mine_k) == 0
        assert child() == 0


def test_child_closes_inherited_sockets_of_an_unused_client(warm: Client) -> None:
    def shared_sockets() -> int:
        return len(open_sockets() & before)

    elsewhere = open_sockets()
    with Client(str(warm._endpoint._base_url)) as client:
        client.healthy()
        before = open_sockets() - elsewhere

        assert len(before) == 1
        assert in_child(shared_sockets)() == 0
        assert open_sockets() >= before


def test_fork_during_a_call_of_another_thread(warm: Client, stored: dict[str, Any]) -> None:
    (mine, mine_k), (its, its_k) = stored.items()
    wrong, is_over = [], threading.Event()

    def read_on() -> None:
        while not is_over.is_set():
            wrong.append(wrong_reads(warm, mine, mine_k, 1))

    thread = threading.Thread(target=read_on)
    thread.start()
    try:
        children = [in_child(lambda: wrong_reads(warm, its, its_k, 3)) for _ in range(10)]
        assert [child() for child in children] == [0] * 10
    finally:
        is_over.set()
        thread.join()
    assert wrong
    assert not any(wrong)


def test_fork_in_a_call_does_not_disturb_it(warm: Client, session_id: str, tmp_path: Path) -> None:
    k = np.ones((4, 4, 2048, 64), np.float16)
    session = warm.session(session_id, FLOAT16)
    session.append(k, k)
    children = []

    def fork_once(*_: object) -> None:
        if not children:
            children.append(in_child(lambda: warm.session(session_id).info().length))

    session.export(tmp_path / "file", fork_once)

    assert children[0]() == 2048
    assert warm.import_session(tmp_path / "file", f"{session_id}-copy").info().length == 2048


def test_tls_connection_of_the_parent_survives_its_children(tmp_path: Path, k: Any, v: Any) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "served")
    authority.cert_pem.write_to_path(tmp_path / "own")

    with running_service("--tls-cert", str(tmp_path / "served")) as service:
        elsewhere = open_sockets()
        with Client(service.url, ca_file=tmp_path / "own", retries=0) as client:
            client.session("a").append(k, v)
            before = open_sockets() - elsewhere
            assert in_child(client.healthy)()
            (tmp_path / "own").unlink()
            assert in_child(client.healthy)(), "a child that cannot read the file uses the parent's context"
            assert client.session("a").info().length == 5
            assert open_sockets() - elsewhere == before, "the parent still has its connection"


def test_child_appends_after_the_parent(warm: Client, session_id: str, k: Any) -> None:
    session = warm.session(session_id, FLOAT16)
    session.append(k, k)

    # The handle is in use, so its lock is held and the lengths are unknown, in the child for ever.
    with session._turns._lock, session._flows._changes.change():
        assert in_child(lambda: session.append(k, k, minimal=True).position)() == 5

    assert in_child(lambda: session.append(k, k, minimal=True).position)() == 10
    assert session.info().length == 15


def test_asynchronous_client_works_in_a_child(server: Any, session_id: str, k: Any) -> None:
    async def append() -> int:
        return (await session.append(k, k, minimal=True)).position

    async def fork_in_the_loop() -> tuple[int, int]:
        await append()
        child = in_child(lambda: asyncio.run(append()))()
        await client.aclose()
        return child, (await client_of_parent.session(session_id).info()).length

    async def main() -> tuple[int, int]:
        try:
            return await fork_in_the_loop()
        finally:
            await client_of_parent.aclose()

    client, client_of_parent = AsyncClient(server.url, retries=0), AsyncClient(server.url, retries=0)
    session = client.session(session_id, FLOAT16)

    assert asyncio.run(main()) == (5, 10)


def test_httpx_client_of_the_caller_is_refused_after_a_fork(server: Any) -> None:
    with httpx.Client() as http:
        unused, used = Client(server.url, http=http), Client(server.url, http=http)
        used.session("a")
        assert used.healthy()

        assert in_child(unused.healthy)()
        with pytest.raises(RuntimeError, match=r"used before os\.fork; create a client in the child"):
            in_child(used.healthy)()
        in_child(used.close)()
        assert used.healthy()


def test_fork_without_the_hooks_of_python_is_detected(warm: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_sockets()

    monkeypatch.setattr(forks._Process, "pid", -1)

    assert warm.healthy()
    assert len(open_sockets() - before) == 1, "the client has a new connection"
    assert len(before - open_sockets()) >= 1, "it has closed the connection of another process"
