"""Assertions about rejected requests, and a pair of arrays to append."""

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
    """Assert that the request was rejected because of one field, with a reason."""
    problem = answer.problem(422, "invalid-request")
    assert [error["field"] for error in problem["errors"]] == [field], problem
    assert all(error["reason"] for error in problem["errors"]), problem


def spoiled(values: NDArray[Any], places: list[tuple[int, ...]], value: float) -> NDArray[Any]:
    """Return a float32 copy with a value at several positions."""
    copy = values.astype(np.float32)
    for place in places:
        copy[place] = value
    return copy
