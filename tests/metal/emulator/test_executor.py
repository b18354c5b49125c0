"""The emulator computes what a GPU computes."""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from metal_emulator import sample_kernels
from metal_emulator.compile.compiler import CompileError
from metal_emulator.executor import Executor, executing
from metal_emulator.launch import Pass
from metal_emulator.sample_kernels import rows, run

INDEX = "uint i = thread_position_in_grid.x; "


@pytest.fixture
def executor() -> Executor:
    return Executor()


@pytest.mark.parametrize("head_dim", [64, 256])
@pytest.mark.parametrize(("dtype", "error"), [(mx.float32, 1e-6), (mx.float16, 4e-3), (mx.bfloat16, 3e-2)])
def test_kernel_equals_numpy(executor: Executor, dtype: mx.Dtype, error: float, head_dim: int) -> None:
    x = rows(dtype, head_dim)

    y, largest = sample_kernels.rotate(executor, x)

    expected = sample_kernels.reference(np.array(x.astype(mx.float32)))
    np.testing.assert_allclose(np.array(y.astype(mx.float32)), expected, atol=error)
    np.testing.assert_allclose(np.array(largest), np.abs(expected).reshape(3, -1).max(axis=1), rtol=1e-5)


def test_executing_replaces_metal_kernel_of_mlx() -> None:
    with executing() as executor:
        kernel = mx.fast.metal_kernel(
            name="twice", input_names=["x"], output_names=["y"], source=INDEX + "y[i] = 2 * x[i];"
        )
        (y,) = kernel(  # type: ignore[operator]
            inputs=[mx.arange(3)],
            grid=(3, 1, 1),
            threadgroup=(256, 1, 1),
            output_shapes=[(3,)],
            output_dtypes=[mx.int32],
            stream=mx.cpu,
        )
        available = mx.metal.is_available()

    assert available
    assert y.tolist() == [0, 2, 4]
    assert [dispatch.grid for dispatch in executor.dispatches] == [(3, 1, 1)]
    assert not isinstance(mx.fast.metal_kernel, type(executor.metal_kernel))


def test_planned_kernels_compile_together_and_run(executor: Executor) -> None:
    x = rows(mx.bfloat16, 128)
    with executor.plan() as planned:
        zeros, _ = sample_kernels.rotate(executor, x)
        sample_kernels.rotate(executor, rows(mx.float32, 128))

    executor.prepare(planned)
    y, _ = sample_kernels.rotate(executor, x)

    assert not zeros.any()
    assert y.any()
    assert [dispatch.variant.inputs[0].dtype.name for dispatch in planned] == ["bfloat16", "float32"]
    assert executor.prepare(planned) == 0


# ---- what the language says ----


def test_threadgroups_at_the_edge_of_the_grid_are_cut(executor: Executor) -> None:
    out = run(
        executor, INDEX + "out[i] = threads_per_threadgroup.x + 100 * threadgroup_position_in_grid.x;", threads=70
    )

    assert out.tolist() == [32] * 32 + [132] * 32 + [206] * 6


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("simd_shuffle(v, 3)", [3] * 32),
        ("simd_shuffle(v, 31 - i)", [31 - i for i in range(32)]),
        ("simd_shuffle_xor(v, 5)", [i ^ 5 for i in range(32)]),
        ("simd_shuffle_up(v, 2)", [0, 1, *range(30)]),
        ("simd_shuffle_down(v, 2)", [*range(2, 32), 30, 31]),
        ("simd_shuffle_rotate_up(v, 2)", [30, 31, *range(30)]),
        ("simd_shuffle_rotate_down(v, 2)", [*range(2, 32), 0, 1]),
        ("simd_shuffle_and_fill_up(v, v + 100, 2)", [130, 131, *range(30)]),
        ("simd_shuffle_and_fill_down(v, v + 100, 2)", [*range(2, 32), 100, 101]),
        ("simd_broadcast(v, 7)", [7] * 32),
        ("simd_broadcast_first(v)", [0] * 32),
        ("simd_sum(v)", [496] * 32),
        ("simd_max(v)", [31] * 32),
        ("simd_min(v)", [0] * 32),
        ("simd_product(v < 5 ? v + 1 : 1.0f)", [120] * 32),
        ("simd_or(1u << i)", [4294967295] * 32),
        ("simd_xor(i)", [0] * 32),
        ("simd_prefix_inclusive_sum(v)", [i * (i + 1) // 2 for i in range(32)]),
        ("simd_prefix_exclusive_sum(v)", [i * (i - 1) // 2 for i in range(32)]),
        ("simd_any(i == 3)", [1] * 32),
        ("simd_all(i < 31)", [0] * 32),
        ("ulong(simd_ballot(i & 1)) & 0xFFu", [0xAA] * 32),
        ("simd_is_first()", [1] + [0] * 31),
    ],
)
def test_simdgroup_functions_follow_the_specification(executor: Executor, call: str, expected: list[int]) -> None:
    out = run(executor, INDEX + f"float v = x[i]; out[i] = {call};", dtype=mx.float32)

    np.testing.assert_array_equal(np.array(out), np.array(expected, np.float32))


def test_reductions_use_the_precision_of_their_type(executor: Executor) -> None:
    source = INDEX + "T v = static_cast<T>(i == 0 ? 2048.0f : 1.0f); out[i] = simd_sum(v);"
    kernel = executor.metal_kernel("toy", ["x"], ["out"], source)

    def total(dtype: mx.Dtype, order: str) -> float:
        executor.passes = (Pass(sum_order=order),)  # type: ignore[arg-type]
        sizes = {"grid": (32, 1, 1), "threadgroup": (32, 1, 1), "output_shapes": [(32,)], "output_dtypes": [mx.float32]}
        return float(kernel(inputs=[mx.zeros(8)], template=[("T", dtype)], **sizes)[0][0].item())  # type: ignore[arg-type]

    assert total(mx.float32, "up") == 2079.0
    assert total(mx.float16, "up") == 2048.0
    assert total(mx.float16, "down") == 2080.0
    assert total(mx.bfloat16, "down") == 2080.0


def test_vector_types_load_convert_and_compute(executor: Executor) -> None:
    source = (
        INDEX
        + """
        float4 a = reinterpret_cast<const device float4*>(x)[i];
        half4 b = half4(a) * 2.0h;
        uchar4 c = uchar4(b + half4(1, 2, 3, 4));
        bool4 d = a > float4(4.0f);
        out[i] = as_type<uint>(c) + (any(d) ? 1u : 0u) + (all(d) ? 1u : 0u) + uint(metal::fma(a, a, a).w) + uint(a[1]);
    """
    )

    out = run(executor, source, mx.arange(8, dtype=mx.float32), threads=2, dtype=mx.uint32)

    packed = [2 * np.arange(4 * i, 4 * i + 4) + np.arange(1, 5) for i in range(2)]
    words = [int(np.frombuffer(p.astype(np.uint8).tobytes(), np.uint32)[0]) for p in packed]
    assert out.tolist() == [words[0] + 12 + 1, words[1] + 1 + 56 + 5]


def test_output_with_init_value_accepts_atomics(executor: Executor) -> None:
    source = "atomic_fetch_add_explicit(&out[0], uint(x[thread_position_in_grid.x]), memory_order_relaxed);"

    out = run(executor, source, size=1, dtype=mx.uint32, init_value=1000, atomic=True)

    assert out.tolist() == [1496]


def test_divergent_lanes_meet_by_call_path_if_not_strict(executor: Executor) -> None:
    executor.passes = (Pass(strict=False), Pass("reverse", strict=False, poison=0x5A))
    header = "inline float total(float v) { return simd_sum(v); }"

    out = run(executor, INDEX + "out[i] = i < 8 ? total(1) : i < 24 ? total(1) : simd_sum(1.0f);", header=header)

    assert out.tolist() == [8] * 8 + [16] * 16 + [8] * 8
    assert executor.counts is not None
    assert (executor.counts.collectives, executor.counts.divergent) == (3, 3)


def test_compile_error_names_the_line(executor: Executor) -> None:
    with pytest.raises(CompileError, match="custom_kernel_toy_float_float:6:"):
        run(executor, INDEX + "\nout[i] = y[i];")


def test_invalid_grid_is_rejected(executor: Executor) -> None:
    with pytest.raises(ValueError, match="more than 1024 threads"):
        run(executor, INDEX + "out[i] = x[i];", threads=2048, threadgroup=2048)
    with pytest.raises(ValueError, match="must be positive"):
        run(executor, INDEX + "out[i] = x[i];", threads=0)


def test_service_starts_with_emulated_metal() -> None:
    launcher = Path(sample_kernels.__file__).with_name("serve.py")

    done = subprocess.run([sys.executable, str(launcher), "--help"], capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert "--backend" in done.stdout
