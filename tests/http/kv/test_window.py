"""Sessions with a window, which keep their last tokens only, over HTTP."""

import pytest

from hadakv_kernels import Codec
from hadakv_service.sessions.layer_run import PAGE_TOKENS
from hadakv_service.storage.memory_budget import PAGE_OVERHEAD_NBYTES, RUN_OVERHEAD_NBYTES, SESSION_OVERHEAD_NBYTES
from support.contract import Caller, stream
from support.inputs.arrays import DEFAULT, pair, row_nbytes


def test_window_keeps_last_tokens_and_positions(caller: Caller, session: str) -> None:
    k, v = pair(2, 1, 1000)
    caller.put(f"/sessions/{session}", {"window": 300})

    for start in range(0, 1000, 40):
        caller.append(session, k[:, :, start : start + 40], v[:, :, start : start + 40], position=start)

    held, info = caller.read(session), caller.info(session)
    assert (held["start"], held["stop"], held["length"]) == (700, 1000, 1000)
    assert held["k"] == stream(k[:, :, 700:], DEFAULT)
    assert info["layers"] == [{"layer": layer, "start": 700, "length": 1000} for layer in range(2)]
    assert info["nbytes"] < (300 + PAGE_TOKENS) * 2 * 2 * row_nbytes(DEFAULT, 64)
    assert caller.read(session, start=990)["v"] == stream(v[:, :, 990:], DEFAULT)


def test_append_may_be_larger_than_the_window(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 900)
    caller.put(f"/sessions/{session}", {"window": 10})

    response = caller.append(session, k, v)

    assert response.body["k"] == stream(k, DEFAULT)
    held = caller.read(session)
    assert (held["start"], held["stop"]) == (890, 900)
    assert held["v"] == stream(v[:, :, 890:], DEFAULT)


@pytest.mark.parametrize("codec", [DEFAULT, Codec(kind="float16")], ids=["4 bits", "float16"])
@pytest.mark.parametrize("later", [0, 9], ids=["at once", "while a token is left"])
def test_append_larger_than_the_window_can_be_repeated(caller: Caller, session: str, codec: Codec, later: int) -> None:
    k, v = pair(2, 2, 30)
    more = pair(2, 2, later)
    caller.put(f"/sessions/{session}", {"window": 10, "codec": codec.to_mapping()})
    caller.append(session, *pair(2, 2, 300))

    first = caller.append(session, k, v, position=300)
    caller.append(session, *more)
    before = caller.snapshot(session)
    again = caller.append(session, k, v, position=300)

    assert (again.status, again.body) == (200, first.body)
    assert caller.snapshot(session) == before


@pytest.mark.parametrize("at", [20, 29], ids=["the first", "the last"])
@pytest.mark.parametrize("name", ["k", "v"])
def test_other_content_within_the_window_is_a_conflict(caller: Caller, session: str, name: str, at: int) -> None:
    tensors = dict(zip("kv", pair(1, 2, 30), strict=True))
    caller.put(f"/sessions/{session}", {"window": 10})
    caller.append(session, **tensors)
    before = caller.snapshot(session)
    tensors[name][0, 1, at] *= -1

    response = caller.append(session, **tensors, position=0)

    assert response.problem(409, "position-conflict")["length"] == 30
    assert caller.snapshot(session) == before


def test_repetition_that_left_the_window_is_a_conflict(caller: Caller, session: str) -> None:
    k, v = pair(1, 1, 30)
    caller.put(f"/sessions/{session}", {"window": 10})
    caller.append(session, k, v)
    caller.append(session, *pair(1, 1, 10))

    problem = caller.append(session, k, v, position=0).problem(409, "position-conflict")

    assert problem["length"] == 40
    assert "before 30 have left the window" in problem["detail"]


def test_tokens_outside_the_window_cannot_be_read(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"window": 10})
    caller.append(session, *pair(1, 1, 30))

    problem = caller.get(f"/sessions/{session}/kv", start=19).problem(422, "invalid-request")

    assert problem["errors"][0]["field"] == "start"


def test_windowed_session_uses_budget_for_its_window_only(alone: Caller, session: str) -> None:
    k, v = pair(1, 1, 5000)
    before = alone.used_nbytes()
    alone.put(f"/sessions/{session}", {"window": 100})

    for start in range(0, 5000, 500):
        alone.append(session, k[:, :, start : start + 500], v[:, :, start : start + 500])

    taken = alone.used_nbytes() - before
    held = alone.info(session)["nbytes"]
    assert held < (100 + PAGE_TOKENS) * 2 * row_nbytes(DEFAULT, 64)
    assert taken == held + SESSION_OVERHEAD_NBYTES + RUN_OVERHEAD_NBYTES + PAGE_OVERHEAD_NBYTES


def test_layers_without_common_tokens_read_as_empty(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"window": 10})
    caller.append(session, *pair(1, 1, 100), layer=0)
    caller.append(session, *pair(1, 1, 50), layer=1)

    held = caller.read(session)

    assert held["start"] == held["stop"]
    assert held["k"]["packed"]["shape"] == [2, 1, 0, 32]
