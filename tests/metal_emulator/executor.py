"""`mx.fast.metal_kernel` on a machine without Metal: the same calls, run by the processor under supervision.

`with executing() as executor:` replaces `mx.fast.metal_kernel` and `mx.metal.is_available`, so that code written for a
GPU runs as it is: the grid, the threadgroup, the template arguments and the shapes it asks for are those that are used.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from hadakv_kernels.gpu import mlx_kernels
from metal_emulator.compile.compiler import Compiler, build, find_compiler
from metal_emulator.compile.metal_source import (
    ArrayType,
    Definition,
    Dtype,
    KernelText,
    TemplateArgument,
    Variant,
    metal_source,
)
from metal_emulator.launch import TWO_PASSES, Buffer, CompiledKernel, Counts, Pass, Size, check_sizes

# MLX's own, whatever stands in its place later.
MLX_METAL_KERNEL = mx.fast.metal_kernel


@dataclass(frozen=True)
class Dispatch:
    """One call of a kernel, without the values."""

    definition: Definition
    variant: Variant
    grid: Size
    threadgroup: Size
    output_shapes: tuple[tuple[int, ...], ...]

    @property
    def text(self) -> KernelText:
        """What is compiled for it."""
        return metal_source(self.definition, self.variant)


@dataclass
class Executor:
    """How kernels run, and what has run.

    Attributes:
        passes: the ways each call is run; their results must be equal.
        compiler: for the kernels.
        planning: calls are written down and return zeros; nothing is compiled.
        dispatches: every call so far.
        counts: of the last call.
    """

    passes: Sequence[Pass] = TWO_PASSES
    compiler: Compiler = field(default_factory=find_compiler)
    planning: bool = False
    dispatches: list[Dispatch] = field(default_factory=list)
    counts: Counts | None = None

    def metal_kernel(  # noqa: PLR0917 - its parameters are MLX's
        self,
        name: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        source: str,
        header: str = "",
        ensure_row_contiguous: bool = True,
        atomic_outputs: bool = False,
        compile_options: object | None = None,
    ) -> "ExecutedMetalKernel":
        """Stands in for `mx.fast.metal_kernel`."""
        if compile_options not in (None, {}, {"math_mode": "safe"}):
            raise ValueError(f"only safe math is executed, not {compile_options}")
        names = (tuple(input_names), tuple(output_names))
        definition = Definition(name, *names, source, header, ensure_row_contiguous, atomic_outputs)
        return ExecutedMetalKernel(self, definition)

    @contextmanager
    def plan(self) -> Iterator[list[Dispatch]]:
        """Within, calls are only written down."""
        first = len(self.dispatches)
        planned: list[Dispatch] = []
        self.planning = True
        try:
            yield planned
        finally:
            self.planning = False
            planned += self.dispatches[first:]

    def prepare(self, dispatches: Sequence[Dispatch]) -> int:
        """Compile the kernels of these calls together, which is many times faster than one by one.

        Returns:
            how many were not compiled yet.
        """
        return build((dispatch.text for dispatch in dispatches), self.compiler)

    def run(self, dispatch: Dispatch, inputs: Sequence[mx.array], init_value: float | None) -> list[mx.array]:
        """Execute one call."""
        check_sizes(dispatch.grid, dispatch.threadgroup)
        self.dispatches.append(dispatch)
        outputs = _output_buffers(dispatch, init_value)
        if not self.planning:
            mx.eval(*inputs)
            buffers = _input_buffers(dispatch.definition, inputs) + outputs
            # MLX cuts a threadgroup that is larger than the grid.
            x, y, z = map(min, dispatch.grid, dispatch.threadgroup)
            kernel = CompiledKernel(dispatch.text, self.compiler)
            self.counts = kernel.run(buffers, dispatch.grid, (x, y, z), self.passes)
        dtypes = dispatch.variant.output_dtypes
        return [_to_mlx(buffer.array, dtype) for buffer, dtype in zip(outputs, dtypes, strict=True)]


@dataclass(frozen=True)
class ExecutedMetalKernel:
    """What `mx.fast.metal_kernel` returns, here."""

    executor: Executor
    definition: Definition

    def __call__(  # its parameters are MLX's
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: Size,
        threadgroup: Size,
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[mx.array]:
        """Run it; the result is there when this returns.

        Raises:
            KernelFault: the kernel did what a GPU does not define.
            CompileError: it does not compile.
            ValueError: MLX or Metal would refuse the call.
        """
        del stream
        self._check_counts(len(inputs), len(output_shapes), len(output_dtypes))
        arrays = [value if isinstance(value, mx.array) else mx.array(value) for value in inputs]
        variant = Variant(
            inputs=tuple(ArrayType(tuple(array.shape), _dtype(array.dtype)) for array in arrays),
            output_dtypes=tuple(map(_dtype, output_dtypes)),
            template=tuple((name, _template_argument(value)) for name, value in template or ()),
        )
        shapes = tuple(tuple(shape) for shape in output_shapes)
        dispatch = Dispatch(self.definition, variant, _size(grid), _size(threadgroup), shapes)
        if verbose:
            print(f"Generated source code for `{dispatch.text.name}`:\n```\n{dispatch.text.text}\n```")  # noqa: T201
        return self.executor.run(dispatch, arrays, init_value)

    def _check_counts(self, inputs: int, shapes: int, dtypes: int) -> None:
        expected = (len(self.definition.input_names), *[len(self.definition.output_names)] * 2)
        if (inputs, shapes, dtypes) != expected:
            raise ValueError(f"inputs, output_shapes, output_dtypes: {(inputs, shapes, dtypes)}, not {expected}")


@contextmanager
def executing(executor: Executor | None = None) -> Iterator[Executor]:
    """Within, this process seems to have Metal."""
    executor = executor or Executor()
    with ExitStack() as replaced:
        # A kernel made outside is not made again inside, nor the other way round.
        for forget in (mlx_kernels.encode_kernel.cache_clear, mlx_kernels.decode_kernel.cache_clear):
            forget()
            replaced.callback(forget)
        replaced.enter_context(patch.object(mx.fast, "metal_kernel", executor.metal_kernel))
        replaced.enter_context(patch.object(mx.metal, "is_available", lambda: True))
        yield executor


def mlx_dtype(dtype: Dtype) -> mx.Dtype:
    """MLX's own."""
    return cast("mx.Dtype", getattr(mx, "bool_" if dtype.name == "bool" else dtype.name))


def _size(sizes: Sequence[int]) -> Size:
    x, y, z = map(int, sizes)
    return x, y, z


def _dtype(dtype: mx.Dtype) -> Dtype:
    return Dtype(str(dtype).removeprefix("mlx.core."))


def _template_argument(value: Any) -> TemplateArgument:
    if isinstance(value, bool | int):
        return value
    if isinstance(value, mx.Dtype):
        return _dtype(value)
    raise ValueError(f"template argument {value!r} is neither a dtype nor an int nor a bool")


def _input_buffers(definition: Definition, inputs: Sequence[mx.array]) -> list[Buffer]:
    buffers = []
    for name, value in zip(definition.input_names, inputs, strict=True):
        array = _to_numpy(value)
        buffers.append(Buffer(name, array))
        if array.ndim:
            described: dict[str, np.ndarray[Any, Any]] = {
                "shape": np.array(array.shape, np.int32),
                "strides": np.array(array.strides, np.int64) // array.itemsize,
                "ndim": np.array(array.ndim, np.int32),
            }
            buffers += [Buffer(f"{name}_{what}", described[what]) for what in definition.describes(name)]
    return buffers


def _output_buffers(dispatch: Dispatch, init_value: float | None) -> list[Buffer]:
    buffers = []
    arrays = zip(dispatch.definition.output_names, dispatch.output_shapes, dispatch.variant.output_dtypes, strict=True)
    for name, shape, dtype in arrays:
        start = mx.full(shape, init_value or 0, mlx_dtype(dtype))
        buffers.append(Buffer(name, _to_numpy(start).copy(), writable=True, initialised=init_value is not None))
    return buffers


def _to_numpy(value: mx.array) -> np.ndarray[Any, Any]:
    """The array's bytes in C order; NumPy has no bfloat16, so that one comes as uint16."""
    bits = value.view(mx.uint16) if value.dtype == mx.bfloat16 else value
    # Copied where need be: what the kernel is told of strides is then what it gets.
    return np.asarray(np.array(cast("Any", bits), copy=False), order="C")


def _to_mlx(array: np.ndarray[Any, Any], dtype: Dtype) -> mx.array:
    value = mx.array(array)
    return value.view(mx.bfloat16) if dtype.name == "bfloat16" else value
