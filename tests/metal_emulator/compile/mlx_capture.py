"""Capture of the kernel text that MLX generates.

Exporting a function traces it without running it. A Metal kernel that is called with `verbose=True` prints its text
while it is traced, on every system.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx

from metal_emulator.compile.metal_source import Dtype, TemplateArgument
from metal_emulator.executor import MLX_METAL_KERNEL, Dispatch, mlx_dtype

_TEXT = re.compile(r"^```\n(.*?)\n```$", re.DOTALL | re.MULTILINE)


def mlx_texts(dispatches: Sequence[Dispatch]) -> list[str]:
    """Return the text that MLX compiles for each of these calls, without MLX's prelude.

    Raises:
        ValueError: MLX rejects a call.
    """
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "printed"
        with _standard_output_to(printed):
            for dispatch in dispatches:
                _trace(dispatch, str(Path(folder) / "exported.mlxfn"))
        texts = _TEXT.findall(printed.read_text())
    if len(texts) != len(dispatches):
        raise ValueError(f"{len(dispatches)} calls, {len(texts)} texts")
    return [str(text) for text in texts]


def _trace(dispatch: Dispatch, path: str) -> None:
    definition, variant = dispatch.definition, dispatch.variant
    kernel = MLX_METAL_KERNEL(
        name=definition.name,
        input_names=list(definition.input_names),
        output_names=list(definition.output_names),
        source=definition.source,
        header=definition.header,
        ensure_row_contiguous=definition.ensure_row_contiguous,
        atomic_outputs=definition.atomic_outputs,
    )

    def call(*inputs: mx.array) -> object:
        return kernel(  # type: ignore[operator]
            inputs=list(inputs),
            template=[(name, _template_value(value)) for name, value in variant.template] or None,
            grid=dispatch.grid,
            threadgroup=dispatch.threadgroup,
            output_shapes=dispatch.output_shapes,
            output_dtypes=[mlx_dtype(dtype) for dtype in variant.output_dtypes],
            verbose=True,
        )

    mx.export_function(path, call, *(mx.zeros(array.shape, mlx_dtype(array.dtype)) for array in variant.inputs))


def _template_value(value: TemplateArgument) -> object:
    return mlx_dtype(value) if isinstance(value, Dtype) else value


@contextmanager
def _standard_output_to(path: Path) -> Iterator[None]:
    """Redirect file descriptor 1, because MLX prints from C++ and bypasses sys.stdout."""
    sys.stdout.flush()
    saved = os.dup(1)
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.dup2(file, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(file)
