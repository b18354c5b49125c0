"""`/metrics`: hits and misses of reads, raw and packed bytes, disk traffic, expiry, connections, rejected requests."""

from contextlib import suppress
from math import inf
from pathlib import Path

import pytest

from hadakv_kernels import Codec
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.sessions.session import Session
from hadakv_service.storage.disk.null_store import NullStore
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import SessionStore
from hadakv_service.testing import RunningService, running_service
from support.assertions import PACKED, K, V
from support.contract import Caller, connect, status_line
from support.inputs.arrays import pair
from support.polling import eventually
from support.services.prometheus import Samples, moved, scrape


def metric(found: Samples, name: str, labels: str = "") -> float:
    return found.get((f"hadakv_{name}", labels), 0)


def test_raw_and_packed_bytes_of_appends(watched: RunningService, asking: Caller, session: str) -> None:
    found = moved(watched.url, lambda: asking.append(session, K, V, codec={"bits": 4}))
    repeated = moved(watched.url, lambda: asking.append(session, K, V, position=0))
    info = asking.get(f"/sessions/{session}").body

    assert metric(found, "appended_raw_bytes_total") == K.nbytes + V.nbytes == info["raw_nbytes"]
    assert metric(found, "appended_packed_bytes_total") == info["nbytes"]
    assert metric(repeated, "appended_raw_bytes_total") == metric(repeated, "appended_packed_bytes_total") == 0


def test_pages_in_memory_are_hits(watched: RunningService, asking: Caller, session: str) -> None:
    for start in range(0, 768, 256):
        asking.append(session, *pair(1, 1, 256), position=start)

    whole = moved(watched.url, lambda: asking.get(f"/sessions/{session}/kv"))
    part = moved(watched.url, lambda: asking.get(f"/sessions/{session}/kv?start=200&stop=257"))
    missing = moved(watched.url, lambda: asking.get(f"/sessions/{session}-other/kv"))

    assert metric(whole, "read_pages_total", "source=memory") == 3
    assert metric(part, "read_pages_total", "source=memory") == 2
    assert metric(missing, "read_pages_total", "source=memory") == 0
    assert metric(scrape(watched.url), "read_pages_total", "source=disk") == 0


def test_spilled_pages_are_misses_and_disk_traffic(tmp_path: Path, session: str) -> None:
    flags = ("--memory-budget", "1MiB", "--disk-budget", "1GiB", "--data-dir", str(tmp_path))
    k, v = pair(4, 2, 256)
    with running_service(*flags) as service, Caller(service.url) as caller:
        nbytes = 8 * 256 * Codec().at(64).nbytes * 2
        assert caller.append(session, k, v).status == 201
        for n in range(20):
            assert caller.append(f"other-{n}", k, v).status == 201
        spilled = scrape(service.url)
        read = moved(service.url, lambda: caller.get(f"/sessions/{session}/kv"))
        again = moved(service.url, lambda: caller.get(f"/sessions/{session}/kv"))

    assert metric(spilled, "tier_read_bytes_total", "tier=disk") == 0
    assert metric(spilled, "tier_written_bytes_total", "tier=disk") > nbytes * 10
    assert metric(read, "read_pages_total", "source=disk") == 1
    assert nbytes < metric(read, "tier_read_bytes_total", "tier=disk") < 2 * nbytes
    assert metric(again, "read_pages_total", "source=memory") == 1
    assert metric(again, "tier_read_bytes_total", "tier=disk") == 0


def test_expired_sessions_are_counted_but_not_as_evicted(session: str) -> None:
    with running_service("--ttl-seconds", "0.001") as service, Caller(service.url) as caller:
        assert caller.append(session, K, V).status == 201
        eventually(lambda: caller.get(f"/sessions/{session}").status == 404)
        # An append under the same id deletes the expired session.
        assert caller.append(session, K, V, position=0).status == 201
        found = scrape(service.url)

    assert metric(found, "expired_sessions_total") >= 1
    assert metric(found, "evictions_total") == 0


def test_session_that_expired_on_disk_is_counted(tmp_path: Path) -> None:
    now = [1000.0]
    first = SessionStore(1 << 20, lambda: now[0], disk=SqliteStore(tmp_path, 1 << 30), backend=CpuBackend(1))
    reservation = first.reserve(("", "a"), new := Session(ttl_seconds=9, durability="spill"), ())
    list(first.commit(reservation, new))
    first.close(inf)
    now[0] += 10

    second = SessionStore(1 << 20, lambda: now[0], disk=SqliteStore(tmp_path, 1 << 30), backend=CpuBackend(1))
    found = second.find(("", "a"))
    second.close(inf)

    assert (found, second.expirations, second.evictions) == (None, 1, 0)


def test_open_connections_are_counted(watched: RunningService) -> None:
    before = metric(scrape(watched.url), "open_connections")
    with Caller(watched.url) as first, Caller(watched.url) as second:
        first.get("/healthz")
        second.get("/healthz")
        during = metric(scrape(watched.url), "open_connections")

    assert during == before + 2
    eventually(lambda: metric(scrape(watched.url), "open_connections") == before)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (("POST", "/sessions/{}/kv", b"\x80"), "invalid-request"),
        (("POST", "/sessions/{}/kv", b"\xc1"), "malformed-body"),
        (("GET", "/sessions/{}", b""), "session-not-found"),
        (("GET", "/sessions/{}%20", b""), "invalid-request"),
        (("GET", "/{}", b""), "not-found"),
        (("PATCH", "/sessions/{}", b""), "method-not-allowed"),
    ],
)
def test_rejected_requests_are_counted_by_reason(
    watched: RunningService, asking: Caller, session: str, request_: tuple[str, str, bytes], reason: str
) -> None:
    method, path, body = request_

    found = moved(watched.url, lambda: asking.send(method, path.format(session), body))

    assert {key[1]: value for key, value in found.items() if key[0] == "hadakv_rejected_requests_total"} == {
        f"reason={reason}": 1
    }


def test_accepted_requests_have_no_reason(watched: RunningService, asking: Caller, session: str) -> None:
    found = moved(watched.url, lambda: asking.send("POST", f"/sessions/{session}/kv", PACKED))

    assert not any(name == "hadakv_rejected_requests_total" for name, _ in found)


@pytest.mark.hadakv_protocol
def test_requests_rejected_by_the_connection_have_a_reason(watched: RunningService) -> None:
    def act() -> None:
        with connect(watched.url) as peer:
            peer.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * (140 << 10) + b"\r\n\r\n")
            assert status_line(peer).split()[1] == b"431"

    found = moved(watched.url, act)

    assert metric(found, "rejected_requests_total", "reason=headers-too-large") == 1


def test_only_committed_bytes_count_as_written(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, 1 << 30)

    with suppress(InterruptedError), store.transaction() as transaction:
        transaction.written_nbytes += 10
        raise InterruptedError
    rolled_back = store.written_nbytes
    with store.transaction() as transaction:
        transaction.written_nbytes += 10

    assert (rolled_back, store.written_nbytes) == (0, 10)
    assert NullStore().written_nbytes == NullStore().read_nbytes == 0
    store.close()
