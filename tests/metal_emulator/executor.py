"""Emulation of `mx.fast.metal_kernel` on a machine without Metal: kernels run on the CPU, with checks.

`with executing() as executor:` replaces `mx.fast.metal_kernel` and `mx.metal.is_available`. Code for a GPU then runs
unchanged, with the grid, threadgroup, template arguments and shapes that it asks for.
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

# The original function of MLX, before it is replaced.
MLX_METAL_KERNEL = mx.fast.metal_kernel


@dataclass(frozen=True)
class Dispatch:
    """One call of a kernel, without its values."""

    definition: Definition
    variant: Variant
    grid: Size
    threadgroup: Size
    output_shapes: tuple[tuple[int, ...], ...]

    @property
    def text(self) -> KernelText:
        """Return the text that is compiled for the call."""
        return metal_source(self.definition, self.variant)


@dataclass
class Executor:
    """Options for running kernels, and a record of the calls.

    Attributes:
        passes: the ways in which each call runs; their results must be equal.
        compiler: compiler for the kernels.
        planning: whether calls are only recorded and return zeros, without compiling.
        dispatches: all calls so far.
        counts: counts of the last call.
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
        """Create a kernel, as `mx.fast.metal_kernel` does."""
        if compile_options not in (None, {}, {"math_mode": "safe"}):
            raise ValueError(f"only safe math is supported, not {compile_options}")
        names = (tuple(input_names), tuple(output_names))
        definition = Definition(name, *names, source, header, ensure_row_contiguous, atomic_outputs)
        return ExecutedMetalKernel(self, definition)

    @contextmanager
    def plan(self) -> Iterator[list[Dispatch]]:
        """Record calls without running them, inside the `with` block."""
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
            the number of kernels that had to be compiled.
        """
        return build((dispatch.text for dispatch in dispatches), self.compiler)

    def run(self, dispatch: Dispatch, inputs: Sequence[mx.array], init_value: float | None) -> list[mx.array]:
        """Run one call."""
        check_sizes(dispatch.grid, dispatch.threadgroup)
        self.dispatches.append(dispatch)
        outputs = _output_buffers(dispatch, init_value)
        if not self.planning:
            mx.eval(*inputs)
            buffers = _input_buffers(dispatch.definition, inputs) + outputs
            # MLX shrinks a threadgroup that is larger than the grid.
            x, y, z = map(min, dispatch.grid, dispatch.threadgroup)
            kernel = CompiledKernel(dispatch.text, self.compiler)
            self.counts = kernel.run(buffers, dispatch.grid, (x, y, z), self.passes)
        dtypes = dispatch.variant.output_dtypes
        return [_to_mlx(buffer.array, dtype) for buffer, dtype in zip(outputs, dtypes, strict=True)]


@dataclass(frozen=True)
class ExecutedMetalKernel:
    """Kernel that runs on the emulator. Replaces the result of `mx.fast.metal_kernel`."""

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
        """Run the kernel and return its outputs.

        Raises:
            KernelFault: the kernel's behaviour is undefined on a GPU.
            CompileError: the kernel does not compile.
            ValueError: MLX or Metal would reject the call.
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
            raise ValueError(
                f"numbers of inputs, output_shapes, output_dtypes are {(inputs, shapes, dtypes)}, must be {expected}"
            )


@contextmanager
def executing(executor: Executor | None = None) -> Iterator[Executor]:
    """Make Metal available in this process, inside the `with` block."""
    executor = executor or Executor()
    with ExitStack() as replaced:
        # Kernels are cached. Clear the cache, so that kernels from outside are not used inside, and the reverse.
        for forget in (mlx_kernels.encode_kernel.cache_clear, mlx_kernels.decode_kernel.cache_clear):
            forget()
            replaced.callback(forget)
        replaced.enter_context(patch.object(mx.fast, "metal_kernel", executor.metal_kernel))
        replaced.enter_context(patch.object(mx.metal, "is_available", lambda: True))
        yield executor


def mlx_dtype(dtype: Dtype) -> mx.Dtype:
    """Return the dtype of MLX."""
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
    raise ValueError(f"template argument {value!r} must be a dtype, an int or a bool")


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
    """Return the array in C order. NumPy has no bfloat16, so such an array is returned as uint16."""
    bits = value.view(mx.uint16) if value.dtype == mx.bfloat16 else value
    # Copy to C order if need be, so that the strides match those that the kernel is given.
    return np.asarray(np.array(cast("Any", bits), copy=False), order="C")


def _to_mlx(array: np.ndarray[Any, Any], dtype: Dtype) -> mx.array:
    value = mx.array(array)
    return value.view(mx.bfloat16) if dtype.name == "bfloat16" else value
