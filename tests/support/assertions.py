"""What the tests of refusals share: a pair of arrays, the body that appends it, and what a refusal must name."""

from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from support.contract import Answer, append_body

RNG = np.random.default_rng(1)
K, V = (RNG.standard_normal((3, 2, 5, 64)).astype(np.float16) for _ in "kv")
VALID = append_body(K, V)
PACKED = msgpack.packb(VALID)


def assert_names_field(answer: Answer, field: str) -> None:
    """It must refuse the request for that field alone, and say why."""
    problem = answer.problem(422, "invalid-request")
    assert [error["field"] for error in problem["errors"]] == [field], problem
    assert all(error["reason"] for error in problem["errors"]), problem


def spoiled(values: NDArray[Any], places: list[tuple[int, ...]], value: float) -> NDArray[Any]:
    """A float32 copy with one value at several places."""
    copy = values.astype(np.float32)
    for place in places:
        copy[place] = value
    return copy
