"""metal_source() generates the same text as MLX."""

import pytest

from metal_emulator.compile.metal_source import TYPES, ArrayType, Definition, Dtype, Variant, metal_source
from metal_emulator.compile.mlx_capture import mlx_texts
from metal_emulator.executor import Dispatch

F32, F16, BF16, U8 = map(Dtype, ("float32", "float16", "bfloat16", "uint8"))
INDEX = "uint i = thread_position_in_grid.x;"
TWO = ArrayType((8, 8), BF16)
SEVEN = ArrayType((7,), F32)
SCALAR = ArrayType((), F32)
LINE = ArrayType((32,), F32)


def case(
    source: str,
    inputs: dict[str, ArrayType],
    outputs: dict[str, Dtype],
    template: tuple[tuple[str, bool | int | Dtype], ...] = (),
    header: str = "",
    atomic: bool = False,
) -> Dispatch:
    definition = Definition("toy", tuple(inputs), tuple(outputs), source, header, atomic_outputs=atomic)
    variant = Variant(tuple(inputs.values()), tuple(outputs.values()), template)
    return Dispatch(definition, variant, (32, 1, 1), (32, 1, 1), ((32,),) * len(outputs))


CASES = {
    "a dtype": case(INDEX + "out[i] = T(x[i]);", {"x": LINE}, {"out": F16}, (("T", F16),)),
    "no template": case(INDEX + "out[i] = x[i];", {"x": LINE}, {"out": F32}),
    "int, bool and dtype": case(
        "uint i = thread_index_in_simdgroup; a[i] = x[i]; b[i] = w[x_ndim] + x_shape[0] + w_strides[0];",
        {"x": TWO, "w": SEVEN},
        {"a": BF16, "b": U8},
        (("D", 256), ("B", True), ("N", False), ("U", BF16)),
        "#define Q 3\n",
    ),
    "negative ints": case(INDEX + "out[i] = K + L;", {"x": LINE}, {"out": F32}, (("K", -3), ("L", 0), ("M", -1))),
    "every shape word": case(
        INDEX + "out[i] = x_shape[0] + x_strides[1] + x_ndim + w_shape[0] + w_strides[0] + w_ndim;",
        {"x": TWO, "w": SEVEN},
        {"out": F32},
    ),
    "a scalar among arrays": case(
        "out[threadgroup_position_in_grid.y] = x[0] * s + s_shape + threads_per_threadgroup.x;",
        {"x": LINE, "s": SCALAR},
        {"out": F32},
    ),
    "seven and eight elements": case(
        INDEX + "out[i] = a[i] + b[i];", {"a": SEVEN, "b": ArrayType((2, 4), F32)}, {"out": F32}
    ),
    "no attribute": case("out[0] = x[0];", {"x": ArrayType((32,), Dtype("int64"))}, {"out": Dtype("uint64")}),
    "no attribute, two outputs": case("a[0] = b[0] = x[0];", {"x": LINE}, {"a": F32, "b": Dtype("bool")}),
    "no attribute, two outputs, a shape": case("a[0] = b[0] = x_shape[0];", {"x": LINE}, {"a": F32, "b": F32}),
    "a name inside another": case(INDEX + "int max_shape = 1; out[i] = x[i];", {"x": LINE}, {"out": F32}),
    "names in the header only": case(
        "out[0] = f(x, 0);",
        {"x": LINE},
        {"out": F32},
        header="float f(const device float* x, uint thread_index_in_simdgroup) { int x_shape = 0; return x[x_shape]; }",
    ),
    "atomic outputs": case(
        "atomic_fetch_add_explicit(&out[0], x[thread_position_in_grid.x], memory_order_relaxed);",
        {"x": LINE},
        {"out": F32},
        atomic=True,
    ),
    "every attribute": case(
        " ".join(
            f"{a}_{b}_{c};"
            for a, b, c in [
                ("thread", "position", "in_grid"),
                ("thread", "position", "in_threadgroup"),
                ("thread", "index", "in_threadgroup"),
                ("thread", "index", "in_simdgroup"),
                ("thread", "index", "in_quadgroup"),
                ("threadgroup", "position", "in_grid"),
                ("threadgroups", "per", "grid"),
                ("threads", "per", "grid"),
                ("threads", "per", "simdgroup"),
                ("threads", "per", "threadgroup"),
                ("simdgroup", "index", "in_threadgroup"),
                ("quadgroup", "index", "in_threadgroup"),
                ("dispatch", "simdgroups", "per_threadgroup"),
                ("dispatch", "quadgroups", "per_threadgroup"),
                ("dispatch", "threads", "per_threadgroup"),
                ("thread", "execution", "width"),
            ]
        )
        + "grid_size; grid_origin;",
        {"x": LINE},
        {"out": F32},
    ),
    "nothing goes in": case(INDEX + "out[i] = i;", {}, {"out": F32}, (("D", 4),)),
    **{
        f"{name} everywhere": case(
            INDEX + "out[i] = x[i];",
            {"x": ArrayType((32,), Dtype(name)), "y": ArrayType((1,), Dtype(name)), "z": ArrayType((), Dtype(name))},
            {"out": Dtype(name)},
            (("T", Dtype(name)),),
        )
        for name in TYPES
        if name != "float64"  # which MLX has on the CPU only
    },
}


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return dict(zip(CASES, mlx_texts(list(CASES.values())), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_metal_source_equals_text_from_mlx(name: str, generated: dict[str, str]) -> None:
    dispatch = CASES[name]

    text = metal_source(dispatch.definition, dispatch.variant)

    assert text.text == generated[name]
