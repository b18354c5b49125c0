"""Expected text of a kernel, built independently of the code that launches it."""

import re
from typing import Any

from hadakv_kernels import CodecSpec
from metal_emulator.proofs.kernel_calls import Call, Encoding

METAL = {"float32": "float", "float16": "float16_t", "bfloat16": "bfloat16_t"}

PLACES = (
    "uint simdgroup_index_in_threadgroup",
    "uint simdgroups_per_threadgroup",
    "uint thread_index_in_simdgroup",
    "uint thread_index_in_threadgroup",
    "uint3 threadgroup_position_in_grid",
    "uint3 threadgroups_per_grid",
    "uint3 threads_per_threadgroup",
)


def expected_text(mlx_kernels: Any, call: Call) -> str:
    """Return the whole text, for a call with enough vectors for all arrays to be in device memory.

    Args:
        mlx_kernels: module that provides the header and the body.
        call: call that determines the signature, buffers and template arguments.
    """
    kind, buffers, template = _encoding(call) if isinstance(call, Encoding) else _decoding(call)
    arguments = [value for _, value in template]
    types = "_".join(type_.replace("*", "c" if space == "const constant" else "") for space, type_, _ in buffers)
    name = f"custom_kernel_hadakv_{kind}_{call.dtype}__{'_'.join(arguments)}_{types}"
    instance = f"{name}<{', '.join(arguments)}>"
    parameters = [f"{space} {type_} {it} [[buffer({i})]]" for i, (space, type_, it) in enumerate(buffers)]
    parameters += [f"{place} [[{place.split()[1]}]]" for place in PLACES]
    header, body = str(mlx_kernels.header("metal", kind)), str(mlx_kernels.source(f"{kind}_kernel"))
    return (
        f"{header}template <{', '.join(parameter for parameter, _ in template)}>\n"
        f"[[kernel]] void {name}(\n  " + ",\n  ".join(parameters) + f") {{\n{body}\n}}\n"
        f'\ntemplate [[host_name("{name}")]] [[kernel]] decltype({instance}) {instance};\n'
    )


def contractions(header: str) -> list[str]:
    """Return the parts of a header that allow Metal to contract or approximate arithmetic."""
    pragma = header.find("#pragma METAL fp contract(off)\n")
    first = header.find("namespace")
    unsaid = [] if 0 <= pragma < first else ["contraction is not turned off before the first function"]
    # Without a namespace, the math mode decides the precision of a function.
    roots = re.findall(r"[\w:]*\b(?:r?sqrt|exp2?|log2?|pow)(?=\()", header)
    return unsaid + [root for root in roots if root != "metal::precise::sqrt"]


Buffers = list[tuple[str, str, str]]
Template = list[tuple[str, str]]


def _encoding(call: Encoding) -> tuple[str, Buffers, Template]:
    element = METAL[call.dtype]
    buffers = [
        ("const device", f"{element}*", "k"),
        ("const device", f"{element}*", "v"),
        ("const device", "float*", "k_table"),
        ("const device", "float*", "v_table"),
        ("const device", "uint8_t*", "signs"),
        ("const constant", "uint32_t*", "rows"),
        ("device", "uint8_t*", "k_packed"),
        ("device", "float*", "k_norms"),
        ("device", "uint8_t*", "v_packed"),
        ("device", "float*", "v_norms"),
        ("device", "float*", "scaled"),
        ("device", "float*", "rms"),
    ]
    template = [
        ("int D", str(call.k.head_dim)),
        ("int STREAMS", "2" if call.v else "1"),
        *_stream("K_", call.k),
        *_stream("V_", call.v or call.k),
        ("bool DIAGNOSE", str(int(call.diagnose))),
        ("typename T", element),
    ]
    return "encode", buffers, template


def _decoding(call: Any) -> tuple[str, Buffers, Template]:
    element = METAL[call.dtype]
    buffers = [
        ("const device", "uint8_t*", "packed"),
        ("const device", "float*", "norms"),
        ("const device", "float*", "table"),
        ("const device", "uint8_t*", "signs"),
        ("const constant", "uint32_t*", "rows"),
        ("device", f"{element}*", "values"),
    ]
    codec = call.spec.codec
    template = [
        ("int D", str(call.spec.head_dim)),
        ("int BITS", str(codec.bits)),
        ("int WIDTH", str(8 if codec.layout == "byte" else codec.bits)),
        ("bool ROTATE", str(int(call.inverse and codec.rotation == "hadamard"))),
        ("typename T", element),
    ]
    return "decode", buffers, template


def _stream(prefix: str, spec: CodecSpec) -> Template:
    codec = spec.codec
    width = 8 if codec.layout == "byte" else codec.bits
    values = [codec.bits, width, int(codec.rotation == "hadamard"), int(codec.norm == "unbiased")]
    if codec.kind == "float16":
        values = [0, 1, 0, 0]
    kinds = ("int", "int", "bool", "bool")
    names = ("BITS", "WIDTH", "ROTATE", "UNBIASED")
    return [(f"{kind} {prefix}{name}", str(value)) for kind, name, value in zip(kinds, names, values, strict=True)]
