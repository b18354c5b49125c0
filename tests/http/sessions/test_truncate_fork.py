"""Truncating and forking sessions, over HTTP."""

import numpy as np
import pytest

from support.assertions import K, V
from support.contract import Caller, stream
from support.inputs.arrays import DEFAULT, pair

LENGTHS = (0, 1, 255, 256, 257, 299, 300)


@pytest.mark.parametrize("length", LENGTHS)
def test_append_continues_after_truncation(caller: Caller, session: str, length: int) -> None:
    k, v = pair(2, 2, 300)
    more_k, more_v = pair(2, 2, 20)
    caller.append(session, k[:, :, :290], v[:, :, :290])
    caller.append(session, k[:, :, 290:], v[:, :, 290:])

    response = caller.post(f"/sessions/{session}/truncate", {"length": length})
    caller.append(session, more_k, more_v, position=length)

    assert (response.status, response.body["length"]) == (200, length)
    held = caller.read(session)
    assert (held["start"], held["stop"]) == (0, length + 20)
    assert held["k"] == stream(np.concatenate([k[:, :, :length], more_k], axis=2), DEFAULT)
    assert held["v"] == stream(np.concatenate([v[:, :, :length], more_v], axis=2), DEFAULT)


def test_truncate_keeps_shorter_layers(caller: Caller, session: str) -> None:
    k, v = pair(2, 1, 10)
    caller.append(session, k[:1], v[:1])
    caller.append(session, k[1:, :, :4], v[1:, :, :4], layer=1)

    caller.post(f"/sessions/{session}/truncate", {"length": 6})

    assert [layer["length"] for layer in caller.info(session)["layers"]] == [6, 4]


def test_truncate_frees_bytes(caller: Caller, session: str) -> None:
    caller.append(session, *pair(2, 2, 1000))
    before = caller.info(session)["nbytes"]

    caller.post(f"/sessions/{session}/truncate", {"length": 100})

    assert caller.info(session)["nbytes"] == before // 10


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"length": 6}, "length"),
        ({"length": -1}, "length"),
        ({"length": "1"}, "length"),
        ({}, "length"),
        ({"length": 1, "from": 0}, "from"),
    ],
    ids=str,
)
def test_truncate_rejects(caller: Caller, kept: str, body: dict[str, object], field: str) -> None:
    before = caller.snapshot(kept)

    rejected = caller.post(f"/sessions/{kept}/truncate", body)

    assert rejected.problem(422, "invalid-request")["errors"][0]["field"] == field
    assert caller.snapshot(kept) == before


def test_truncate_does_not_restore_tokens_outside_the_window(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"window": 10})
    caller.append(session, *pair(1, 1, 1000))

    rejected = caller.post(f"/sessions/{session}/truncate", {"length": 900})

    assert "have left the window" in rejected.problem(422, "invalid-request")["detail"]
    assert caller.post(f"/sessions/{session}/truncate", {"length": 995}).body["length"] == 995


@pytest.mark.parametrize("length", [None, *LENGTHS])
def test_fork_has_the_tokens_and_is_independent(caller: Caller, session: str, length: int | None) -> None:
    k, v = pair(2, 2, 300)
    theirs, ours = pair(2, 2, 3), pair(2, 2, 3)
    caller.append(session, k, v)
    body = {"id": f"{session}-fork"} | ({} if length is None else {"length": length})
    kept = 300 if length is None else length

    response = caller.post(f"/sessions/{session}/fork", body)
    caller.append(session, *theirs)
    caller.append(f"{session}-fork", *ours)
    source = caller.read(session)
    caller.delete(f"/sessions/{session}")

    assert (response.status, response.body["session"], response.body["length"]) == (201, f"{session}-fork", kept)
    assert source["k"] == stream(np.concatenate([k, theirs[0]], axis=2), DEFAULT)
    assert caller.read(f"{session}-fork")["k"] == stream(np.concatenate([k[:, :, :kept], ours[0]], axis=2), DEFAULT)


def test_fork_shares_pages(alone: Caller, session: str) -> None:
    alone.append(session, *pair(4, 2, 2000))
    before = alone.used_nbytes()

    for i in range(10):
        alone.post(f"/sessions/{session}/fork", {"id": f"{session}-{i}"})
    forked = alone.used_nbytes()
    for i in range(10):
        alone.delete(f"/sessions/{session}-{i}")

    assert forked - before < before / 100 + 10 * 2048
    assert alone.used_nbytes() == before


def test_fork_never_replaces_a_session(caller: Caller, kept: str) -> None:
    caller.append(f"{kept}-taken", K, V)
    before = caller.snapshot(f"{kept}-taken")

    for taken in (f"{kept}-taken", kept):
        rejected = caller.post(f"/sessions/{kept}/fork", {"id": taken})

        assert rejected.problem(409, "session-exists")["field"] == "id"
    assert caller.snapshot(f"{kept}-taken") == before


@pytest.mark.parametrize("body", [{}, {"id": "a/b"}, {"id": ".."}, {"id": 3}, {"id": ""}], ids=str)
def test_fork_with_an_invalid_id_is_rejected(caller: Caller, kept: str, body: dict[str, object]) -> None:
    rejected = caller.post(f"/sessions/{kept}/fork", body)

    assert rejected.problem(422, "invalid-request")["errors"][0]["field"] == "id"


@pytest.mark.parametrize("call", ["truncate", "fork"])
def test_truncate_and_fork_of_missing_session_are_not_found(caller: Caller, session: str, call: str) -> None:
    rejected = caller.post(f"/sessions/{session}/{call}", {"length": 0} if call == "truncate" else {"id": "x"})

    rejected.problem(404, "session-not-found")
