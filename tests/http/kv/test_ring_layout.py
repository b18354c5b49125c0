"""Reads of a window in ring buffer order, over HTTP."""

import numpy as np
import pytest

from support.contract import Caller, array
from support.inputs.arrays import FORMS, pair


@pytest.mark.parametrize("form", ["packed", *FORMS])
@pytest.mark.parametrize("tokens", [1, 4, 5, 6, 13, 700])
def test_ring_has_each_token_in_the_row_of_its_position(caller: Caller, session: str, tokens: int, form: str) -> None:
    caller.put(f"/sessions/{session}", {"window": 5})
    caller.append(session, *pair(2, 3, tokens))
    linear, ring = (caller.read(session, form=form, layout=layout) for layout in ("linear", "ring"))

    assert {key: ring[key] for key in ("start", "stop", "length")} == {
        key: linear[key] for key in ("start", "stop", "length")
    }
    for name in "kv":
        for part, wire in linear[name].items():
            rows = array(ring[name][part])
            assert rows.shape[2] == 5
            for at, position in enumerate(range(linear["start"], linear["stop"])):
                np.testing.assert_array_equal(rows[:, :, position % 5], array(wire)[:, :, at])
            assert not rows[:, :, tokens:].any()


def test_ring_of_a_layer_range(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"window": 5})
    caller.append(session, *pair(4, 1, 9))

    whole, part = (caller.read(session, layout="ring", **of) for of in ({}, {"layers": "1:3"}))

    np.testing.assert_array_equal(array(part["k"]["packed"]), array(whole["k"]["packed"])[1:3])


def test_ring_of_a_session_without_window_is_rejected(caller: Caller, kept: str) -> None:
    rejected = caller.get(f"/sessions/{kept}/kv", layout="ring")

    assert rejected.problem(422, "invalid-request")["errors"][0]["field"] == "layout"


def test_ring_with_start_or_stop_is_rejected(caller: Caller, kept: str) -> None:
    rejected = caller.get(f"/sessions/{kept}/kv", layout="ring", start=0)

    assert rejected.problem(422, "invalid-request")["errors"][0]["field"] == "layout"


def test_ring_larger_than_the_limit_is_rejected_early(caller: Caller, session: str) -> None:
    caller.put(f"/sessions/{session}", {"window": 10**12})
    caller.append(session, *pair(1, 1, 3))

    rejected = caller.get(f"/sessions/{session}/kv", layout="ring")

    assert rejected.problem(422, "response-too-large")["errors"][0]["field"] == "layout"
