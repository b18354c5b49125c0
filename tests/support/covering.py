"""Subsets of parameter products: every pair, or every triple, of values occurs in them."""

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from itertools import combinations, groupby, product
from typing import Any

import numpy as np
import pytest

Row = tuple[Hashable, ...]


@cache
def covering(axes: tuple[tuple[Hashable, ...], ...], strength: int = 2) -> list[Row]:
    """Choose rows of a product so that every combination of `strength` values occurs in one of them.

    The choice is greedy and always the same.

    Args:
        axes: the values of each parameter.
        strength: number of parameters whose values are combined: 2 for pairs, 3 for triples.

    Returns:
        the chosen rows, in the order of the product.
    """
    rows = list(product(*axes))
    numbers = np.array(list(product(*(range(len(axis)) for axis in axes))))
    columns = []
    for some in combinations(range(len(axes)), strength):
        sizes = [len(axes[i]) for i in some]
        index = np.ravel_multi_index(tuple(numbers[:, i] for i in some), sizes)
        columns.append(index[:, None] == np.arange(np.prod(sizes)))
    covers = np.concatenate(columns, axis=1).astype(np.float32)
    missing = np.ones(covers.shape[1], np.float32)
    chosen = set()
    while missing.any():
        best = int(np.argmax(covers @ missing))
        chosen.add(best)
        missing[covers[best] > 0] = 0
    return [rows[i] for i in sorted(chosen)]


def thinned(
    axes: Sequence[Sequence[Any]], strength: int = 2, group: int = 1, name: Callable[..., str] | None = None
) -> list[Any]:
    """Parametrize a test with the rows of a product, in groups.

    The rows of `covering` run always. All other rows are marked `exhaustive`.

    Args:
        axes: the values of each parameter.
        strength: of the covering subset.
        group: number of leading parameters that are the same in one group, which is one test.
        name: test id of a group, from its leading values; by default they are joined.

    Returns:
        parameter sets, each with one list of rows.
    """
    rows = list(product(*axes))
    always = set(covering(tuple(map(tuple, axes)), strength))
    parameters = []
    for lead, same in groupby(rows, key=lambda row: row[:group]):
        members = list(same)
        name_ = name(*lead) if name else "-".join(map(str, lead))
        parameters.append(pytest.param([row for row in members if row in always], id=name_))
        others = [row for row in members if row not in always]
        parameters.append(pytest.param(others, id=f"{name_}-others", marks=pytest.mark.exhaustive))
    return [parameter for parameter in parameters if parameter.values[0]]
