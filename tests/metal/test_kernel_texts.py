"""The text that MLX compiles for every variant of the kernels, captured from MLX, is the expected one.

It is compared with `expected_text`, which is independent of the launches, and with `metal_source`, whose text the
emulator compiles. So the emulator runs the same text as a Mac.
"""

from collections.abc import Sequence

import pytest

from hadakv_kernels.gpu import mlx_kernels
from metal_emulator.compile.mlx_capture import mlx_texts
from metal_emulator.executor import executing
from metal_emulator.proofs import kernel_calls as calls
from metal_emulator.proofs.expected_text import contractions, expected_text
from metal_emulator.proofs.kernel_calls import Call


@pytest.mark.parametrize("some", calls.by_kind())
def test_variants_have_the_expected_text_and_unique_names(some: Sequence[Call]) -> None:
    with executing() as executor:
        dispatches = calls.planned(executor, mlx_kernels, some)

    generated = mlx_texts(dispatches)

    for call, dispatch, text in zip(some, dispatches, generated, strict=True):
        assert text == expected_text(mlx_kernels, call), str(call)
        assert text == dispatch.text.text, str(call)
    # MLX caches compiled kernels by name, so each text needs its own name.
    assert len({dispatch.text.name for dispatch in dispatches}) == len(set(generated)) == len(some)


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_headers_prevent_contraction_and_fast_roots(part: str) -> None:
    assert contractions(mlx_kernels.header("metal", part)) == []
