"""Covering subsets of parameter products, from which the kernel tests are parametrized."""

from itertools import combinations, product

import pytest

from support.covering import covering, thinned

AXES = (("a", "b", "c"), (1, 2), (True, False), ("x", "y", "z", "w"))


@pytest.mark.parametrize("strength", [1, 2, 3, 4])
def test_covering_contains_every_combination(strength: int) -> None:
    rows = covering(AXES, strength)

    for some in combinations(range(len(AXES)), strength):
        expected = set(product(*(AXES[i] for i in some)))
        assert {tuple(row[i] for i in some) for row in rows} == expected


def test_covering_is_smaller_than_the_product() -> None:
    assert len(covering(AXES, 2)) <= 16
    assert len(covering(AXES, 4)) == 48


def test_thinned_contains_every_row_once() -> None:
    parameters = thinned(AXES, group=1)

    rows = [row for parameter in parameters for row in parameter.values[0]]
    assert sorted(map(str, rows)) == sorted(str(row) for row in product(*AXES))


def test_thinned_marks_other_rows_as_exhaustive() -> None:
    always = [row for p in thinned(AXES, group=1) if not p.marks for row in p.values[0]]

    assert sorted(map(str, always)) == sorted(map(str, covering(AXES, 2)))
