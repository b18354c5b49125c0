"""Durability: sessions on disk after a clean shutdown and after a kill."""

from pathlib import Path

import numpy as np
import pytest

from hadakv_service.testing import running_service
from support.contract import Caller, stream
from support.inputs.arrays import pair
from support.polling import eventually
from support.services.restarted_service import CODEC, K, V, holds, service


def test_clean_shutdown_keeps_sessions(tmp_path: Path) -> None:
    with service(tmp_path) as caller:
        caller.put("/sessions/a", {"window": 5, "ttl_seconds": 3600.0})
        caller.append("a", K, V)
        before = caller.snapshot("a")

    with service(tmp_path) as caller:
        assert caller.info("a")["tier"] == "disk"
        assert caller.snapshot("a")[1] == before[1]
        assert {**caller.snapshot("a")[0], "tier": None} == {**before[0], "tier": None}


def test_restored_session_can_be_changed(tmp_path: Path) -> None:
    with service(tmp_path) as caller:
        caller.append("a", K[:, :, :299], V[:, :, :299])

    with service(tmp_path) as caller:
        response = caller.append("a", K[:, :, 299:], V[:, :, 299:], position=299)
        assert (response.status, response.body["length"]) == (200, 300)
        assert holds(caller, "a")
        assert caller.post("/sessions/a/fork", {"id": "b", "length": 7}).status == 201
        assert caller.post("/sessions/a/truncate", {"length": 10}).status == 200
        assert holds(caller, "b", 7)

    with service(tmp_path) as caller:
        assert holds(caller, "a", 10)
        assert holds(caller, "b", 7)
        assert caller.delete("/sessions/a").status == 204

    with service(tmp_path) as caller:
        caller.get("/sessions/a").problem(404, "session-not-found")
        assert [each["session"] for each in caller.get("/sessions").body["sessions"]] == ["b"]


@pytest.mark.parametrize(("durability", "tokens"), [("ack", 300), ("spill", None), ("memory", None)])
def test_kill_keeps_only_ack_sessions(tmp_path: Path, durability: str, tokens: int | None) -> None:
    with service(tmp_path, kill=True) as caller:
        assert caller.put("/sessions/a", {"durability": durability}).body["durability"] == durability
        for start in (0, 1, 255, 256):
            stop = {0: 1, 1: 255, 255: 256, 256: 300}[start]
            caller.append("a", K[:, :, start:stop], V[:, :, start:stop])

    with service(tmp_path) as caller:
        if tokens is None:
            caller.get("/sessions/a").problem(404, "session-not-found")
        else:
            assert holds(caller, "a", tokens)


def test_kill_keeps_checkpointed_spill_sessions(tmp_path: Path) -> None:
    with service(tmp_path, "--checkpoint-seconds", "0.1", kill=True) as caller:
        for name in "abc":
            caller.append(name, K[:, :, :290], V[:, :, :290])
        eventually(lambda: caller.get("/readyz").body["checkpoint_lag_seconds"] == 0)
        caller.post("/sessions/b/truncate", {"length": 3})
        caller.delete("/sessions/c")

    with service(tmp_path) as caller:
        assert holds(caller, "a", 290)
        caller.append("a", K[:, :, 295:], V[:, :, 295:], position=295).problem(409, "position-conflict")
        assert caller.append("a", K[:, :, 290:], V[:, :, 290:], position=290).body["length"] == 300
        # A checkpoint may have written the truncated value before the kill.
        truncated = caller.get("/sessions/b")
        assert truncated.status == 404 or truncated.body["length"] == 3
        caller.get("/sessions/c").problem(404, "session-not-found")


def test_kill_keeps_a_whole_bulk_append(tmp_path: Path) -> None:
    k, v = pair(8, 8, 1200, 128)
    with service(tmp_path, "--durability", "ack", kill=True) as caller:
        assert caller.append("a", k, v).status == 201
        invalid = v.copy()
        invalid[7, 7, 1199, 0] = np.nan
        caller.append("b", k, invalid).problem(422, "non-finite")
        assert caller.append("a", k[:, :, :7], v[:, :, :7]).body["length"] == 1207
        used = caller.get("/readyz").body["disk_used_nbytes"]
        nbytes = caller.info("a")["nbytes"]

    assert nbytes < used < 1.1 * nbytes
    with service(tmp_path) as caller:
        body = caller.read("a", start=0, stop=1200)
        assert [body["k"], body["v"]] == [stream(k, CODEC), stream(v, CODEC)]
        assert caller.info("a")["length"] == 1207


def test_kill_keeps_every_kind_of_acknowledged_change(tmp_path: Path) -> None:
    with service(tmp_path, "--durability", "ack", kill=True) as caller:
        for name in "abc":
            caller.append(name, K, V)
        caller.post("/sessions/a/truncate", {"length": 5})
        caller.post("/sessions/b/fork", {"id": "d"})
        caller.delete("/sessions/c")
        caller.put("/sessions/e", {"layers": 7})

    with service(tmp_path) as caller:
        assert holds(caller, "a", 5)
        assert holds(caller, "b")
        assert holds(caller, "d")
        caller.get("/sessions/c").problem(404, "session-not-found")
        assert caller.info("e")["declared_layers"] == 7


def test_kill_after_truncate_never_restores_deleted_tokens(tmp_path: Path) -> None:
    with service(tmp_path) as caller:
        caller.append("a", K, V)

    with service(tmp_path, kill=True) as caller:
        caller.post("/sessions/a/truncate", {"length": 3})
        caller.append("a", V[:, :, 3:], K[:, :, 3:])

    with service(tmp_path) as caller:
        caller.get("/sessions/a").problem(404, "session-not-found")


def test_sessions_larger_than_memory_are_complete(tmp_path: Path) -> None:
    k, v = pair(4, 4, 2000)

    with service(tmp_path, "--memory-budget", "1MiB") as caller:
        for start in range(0, 2000, 100):
            for name in ("a", "b"):
                cut = slice(start, start + 100)
                response = caller.append(name, k[:, :, cut], v[:, :, cut], position=start)
                assert response.status in (200, 201), response
        info = caller.info("a")
        body = caller.read("a")
        used = caller.used_nbytes()

    assert info["nbytes"] > 1 << 20
    assert info["tier"] in ("mixed", "disk")
    assert [body["k"], body["v"]] == [stream(k, CODEC), stream(v, CODEC)]
    assert used <= 1 << 20


def test_disk_budget_of_zero_writes_nothing(tmp_path: Path) -> None:
    flags = ("--data-dir", str(tmp_path / "data"), "--disk-budget", "0")
    with running_service(*flags) as running, Caller(running.url) as caller:
        assert caller.append("a", K, V).status == 201
        assert caller.info("a")["durability"] == "memory"
        caller.put("/sessions/b", {"durability": "ack"}).problem(422, "invalid-request")

    assert not (tmp_path / "data").exists()


def test_memory_session_is_never_written_to_disk(tmp_path: Path) -> None:
    marked = np.full((1, 1, 300, 64), 1.0, np.float16)
    with service(tmp_path, "--memory-budget", "1MiB") as caller:
        caller.put("/sessions/secret", {"durability": "memory", "codec": {"kind": "float16"}})
        caller.append("secret", marked, marked)
        for name in "abcdef":
            caller.append(name, *pair(2, 2, 1200))
        caller.get("/sessions/secret").problem(404, "session-not-found")

    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert marked[:, :, :8].tobytes() not in content
    assert b"secret" not in content


def test_session_expires_while_the_service_is_down(tmp_path: Path) -> None:
    with service(tmp_path) as caller:
        caller.put("/sessions/a", {"ttl_seconds": 0.2})
        caller.put("/sessions/b", {"ttl_seconds": 3600.0})

    with service(tmp_path) as caller:
        caller.get("/sessions/a").problem(404, "session-not-found")
        assert [each["session"] for each in caller.get("/sessions").body["sessions"]] == ["b"]
        assert caller.append("a", K, V).status == 201
        assert holds(caller, "a")


def test_list_merges_sessions_of_memory_and_disk(tmp_path: Path) -> None:
    names = [f"s{i:02}" for i in range(30)]
    with service(tmp_path) as caller:
        for name in names[::2]:
            caller.append(name, K[:, :, :1], V[:, :, :1])

    with service(tmp_path) as caller:
        for name in names[1::2]:
            caller.append(name, K[:, :, :1], V[:, :, :1])
        for name in names[::3]:
            caller.info(name)
        found, after = [], ""
        while after is not None:
            body = caller.get("/sessions", limit=4, after=after, prefix="s").body
            found += [each["session"] for each in body["sessions"]]
            after = body["next"]
        count = caller.get("/readyz").body["sessions"]

    assert found == names
    assert count == 30
