"""Lint of every variant of the kernels: address spaces, precision, collective calls.

Clang checks every variant. The rules for pointers and divergent calls find the same in all variants of one signature,
so they check one variant of each kind and dtype.
"""

from collections.abc import Sequence

import pytest

from hadakv_kernels.gpu import mlx_kernels
from metal_emulator.executor import executing
from metal_emulator.lint.lint import lint
from metal_emulator.proofs import kernel_calls as calls
from metal_emulator.proofs.kernel_calls import NAMES, Call


def findings(some: Sequence[Call], rows: int) -> str:
    with executing() as executor:
        first, *others = {dispatch.text: None for dispatch in calls.planned(executor, mlx_kernels, some, rows)}
    assert len(others) + 1 == len(some)
    return "\n".join(map(str, lint(first, others)))


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("some", calls.by_kind())
def test_variants_have_no_lint_findings(some: Sequence[Call], dtype: str) -> None:
    assert findings([call for call in some if call.dtype == dtype], rows=9) == ""


@pytest.mark.parametrize("dtype", NAMES)
def test_decoders_of_few_norms_have_no_lint_findings(dtype: str) -> None:
    assert findings(calls.decodings(dtypes=[dtype]), rows=1) == ""
