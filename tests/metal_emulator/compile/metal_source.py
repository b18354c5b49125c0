"""Kernel text as `mlx.fast.metal_kernel` generates it, without MLX.

MLX makes one function of a kernel's `source`. Its parameters are buffers for the inputs, the shapes, strides and ndim
that the source names, the outputs, and the thread attributes that the source names. An explicit instantiation follows
if there are template arguments. The rules are those of mlx/backend/common/metal_kernel.cpp, including its mistakes:
names are found by substring search, and the comma after an output depends on the number of arrays, not of buffers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}

TYPES = {
    "bool": "bool",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "uint8": "uint8_t",
    "uint16": "uint16_t",
    "uint32": "uint32_t",
    "uint64": "uint64_t",
    "float16": "float16_t",
    "bfloat16": "bfloat16_t",
    "float32": "float",
    "float64": "double",
    "complex64": "complex64_t",
}

CONSTANT_BELOW = 8  # elements: smaller inputs go to the constant address space

DESCRIPTIONS: tuple[tuple[Literal["shape", "strides", "ndim"], str], ...] = (
    ("shape", "int*"),
    ("strides", "int64_t*"),
    ("ndim", "int&"),
)


@dataclass(frozen=True)
class Dtype:
    """Dtype by its name in MLX, for example "float32". It can be a template argument."""

    name: str

    @property
    def metal(self) -> str:
        """Name of the type in Metal."""
        return TYPES[self.name]


TemplateArgument = bool | int | Dtype


@dataclass(frozen=True)
class ArrayType:
    """Properties of an array that decide how it is passed."""

    shape: tuple[int, ...]
    dtype: Dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Definition:
    """Arguments of `metal_kernel`."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str = ""
    ensure_row_contiguous: bool = True
    atomic_outputs: bool = False

    def describes(self, input_name: str) -> list[str]:
        """Return which of shape, strides and ndim of an input the source names."""
        return [what for what, _ in DESCRIPTIONS if f"{input_name}_{what}" in self.source]


@dataclass(frozen=True)
class Variant:
    """Properties of a call that decide which function is compiled."""

    inputs: tuple[ArrayType, ...]
    output_dtypes: tuple[Dtype, ...]
    template: tuple[tuple[str, TemplateArgument], ...] = ()


@dataclass(frozen=True)
class KernelText:
    """Text of one kernel function."""

    name: str
    header: str
    function: str

    @property
    def text(self) -> str:
        """The whole text that MLX passes to Metal after its own prelude."""
        return self.header + self.function


def metal_source(definition: Definition, variant: Variant) -> KernelText:
    """Return the text for one variant of a kernel."""
    name = kernel_name(definition, variant)
    lines = [_template_line(variant.template)] if variant.template else []
    lines.append(f"[[kernel]] void {name}(\n")
    lines += _parameters(definition, variant)
    lines.append(definition.source + "\n}\n")
    if variant.template:
        instance = name + _template_arguments(variant.template)
        lines.append(f'\ntemplate [[host_name("{name}")]] [[kernel]] decltype({instance}) {instance};\n')
    return KernelText(name, definition.header, "".join(lines))


def kernel_name(definition: Definition, variant: Variant) -> str:
    """Return the function's name: the kernel's name, the template arguments, and the type and passing of each array."""
    parts = ["custom_kernel_" + definition.name]
    if variant.template:
        arguments = _template_arguments(variant.template).replace(", ", "_")
        parts.append("".join("_" if c in "<>-" else c for c in arguments)[:-1])
    for array in variant.inputs:
        kind = "s" if not array.shape else "c" if array.size < CONSTANT_BELOW else ""
        parts.append(array.dtype.metal + kind)
    parts += [dtype.metal for dtype in variant.output_dtypes]
    return "_".join(parts)


def _template_line(template: Sequence[tuple[str, TemplateArgument]]) -> str:
    kinds = {bool: "bool", int: "int", Dtype: "typename"}
    return "template <" + ", ".join(f"{kinds[type(value)]} {name}" for name, value in template) + ">\n"


def _template_arguments(template: Sequence[tuple[str, TemplateArgument]]) -> str:
    spelled = (value.metal if isinstance(value, Dtype) else str(int(value)) for _, value in template)
    return "<" + ", ".join(spelled) + ">"


def _parameters(definition: Definition, variant: Variant) -> list[str]:
    buffers: list[str] = []
    for name, array in zip(definition.input_names, variant.inputs, strict=True):
        space = "constant" if array.size < CONSTANT_BELOW else "device"
        buffers.append(f"const {space} {array.dtype.metal}{'*' if array.shape else '&'} {name}")
        if array.shape:
            named = definition.describes(name)
            buffers += [f"const constant {kind} {name}_{what}" for what, kind in DESCRIPTIONS if what in named]
    attributes = [f"  {kind} {name} [[{name}]]" for name, kind in ATTRIBUTES.items() if name in definition.source]
    lines = [f"  {buffer} [[buffer({index})]],\n" for index, buffer in enumerate(buffers)]
    arrays = len(definition.input_names) + len(definition.output_names)
    outputs = zip(definition.output_names, variant.output_dtypes, strict=True)
    for index, (name, dtype) in enumerate(outputs, start=len(lines)):
        kind = f"atomic<{dtype.metal}>" if definition.atomic_outputs else dtype.metal
        end = ",\n" if index < arrays - 1 or attributes else ") {\n"
        lines.append(f"  device {kind}* {name} [[buffer({index})]]{end}")
    if attributes:
        lines.append(",\n".join(attributes) + ") {\n")
    return lines
