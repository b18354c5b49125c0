"""Appends and sessions that conflict with the stored ones are rejected, and nothing changes."""

import numpy as np
import pytest

from support.assertions import K, V
from support.contract import Caller, Json


@pytest.mark.parametrize(
    ("shape", "axis", "stored"),
    [((3, 1, 5, 64), "kv_heads", 2), ((3, 4, 5, 64), "kv_heads", 2), ((3, 2, 5, 128), "head_dim", 64)],
)
def test_append_of_another_shape_is_rejected(
    caller: Caller, kept: str, shape: tuple[int, ...], axis: str, stored: int
) -> None:
    before = caller.snapshot(kept)
    values = np.ones(shape, np.float16)

    response = caller.append(kept, values, values)

    assert response.problem(409, "shape-mismatch")[axis] == stored
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize("layer", [2, 4, 1000])
def test_append_beyond_declared_layers_is_rejected(caller: Caller, session: str, layer: int) -> None:
    caller.put(f"/sessions/{session}", {"layers": 4})
    before = caller.snapshot(session)

    response = caller.append(session, K, V, layer=layer)

    assert response.problem(409, "shape-mismatch")["layers"] == 4
    assert caller.snapshot(session) == before


@pytest.mark.parametrize("declared", [{"kv_heads": 3}, {"head_dim": 128}])
def test_append_unlike_the_declared_shape_is_rejected(caller: Caller, session: str, declared: Json) -> None:
    caller.put(f"/sessions/{session}", declared)
    before = caller.snapshot(session)

    response = caller.append(session, K, V)

    problem = response.problem(409, "shape-mismatch")
    assert problem.items() >= declared.items()
    assert caller.snapshot(session) == before


@pytest.mark.parametrize(
    "codec", [{"bits": 5}, {"norm": "unbiased"}, {"kind": "float16"}, {"k": {}, "v": {"bits": 8}}, {"k": {"bits": 2}}]
)
def test_append_with_another_codec_is_rejected(caller: Caller, kept: str, codec: Json) -> None:
    before = caller.snapshot(kept)

    response = caller.append(kept, K, V, codec=codec)

    assert response.problem(409, "codec-mismatch")["codec"]["k"]["bits"] == 4
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize("position", [0, 1, 4, 6, 2**63])
def test_append_not_at_the_end_is_rejected_with_the_length(caller: Caller, kept: str, position: int) -> None:
    before = caller.snapshot(kept)

    response = caller.append(kept, V, K, position=position)

    assert response.problem(409, "position-conflict")["length"] == 5
    assert caller.snapshot(kept) == before


def test_append_past_the_start_of_a_new_session_is_rejected(caller: Caller, session: str) -> None:
    response = caller.append(session, K, V, position=3)

    assert response.problem(409, "position-conflict")["length"] == 0
    caller.get(f"/sessions/{session}").problem(404, "session-not-found")


def test_append_to_layers_of_different_lengths_is_rejected(caller: Caller, kept: str) -> None:
    caller.append(kept, K[:1, :, :2], V[:1, :, :2])
    before = caller.snapshot(kept)

    responses = [
        caller.append(kept, K, V),
        caller.append(kept, K, V, position=5),
        caller.append(kept, K, V, position=7),
    ]

    assert [response.problem(409, "position-conflict")["length"] for response in responses] == [5, 5, 5]
    assert caller.snapshot(kept) == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"layers": 2}, "layers"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_dim": 128}, "head_dim"),
        ({"codec": {"bits": 5}}, "codec"),
        ({"codec": {"v": {"norm": "unbiased"}}}, "codec"),
        ({"window": 3}, "window"),
        ({"ttl_seconds": 60}, "ttl_seconds"),
        ({"kv_heads": 2, "head_dim": 512}, "head_dim"),
    ],
    ids=str,
)
def test_existing_session_cannot_change_its_shape(caller: Caller, kept: str, body: Json, field: str) -> None:
    before = caller.snapshot(kept)

    response = caller.put(f"/sessions/{kept}", body)

    assert response.problem(409, "session-exists")["field"] == field
    assert caller.snapshot(kept) == before
