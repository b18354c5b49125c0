"""The emulator reports behaviour that is undefined on a GPU."""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from metal_emulator import launch, sample_kernels
from metal_emulator.compile.compiler import sanitized
from metal_emulator.executor import Executor
from metal_emulator.launch import KernelFault
from metal_emulator.sample_kernels import rows, run

INDEX = "uint i = thread_position_in_grid.x; "


@pytest.fixture
def executor() -> Executor:
    return Executor()


BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
LAST = "for (int i = 0; i < E; i++) y[row"

TOY_FAULTS = {
    "no barrier": (BARRIER, "", "which nothing has written|with no barrier between"),
    "a barrier that orders other memory": (BARRIER, "threadgroup_barrier(mem_flags::mem_device);", "with no barrier"),
    "a divergent barrier": (BARRIER, f"if (lane < 16) {BARRIER}", "threadgroup_barrier reached by 32 of 64 threads"),
    "a barrier in each branch": (
        BARRIER,
        f"if (lane < 16) {BARRIER} else {BARRIER}",
        "different calls of threadgroup_barr",
    ),
    "a barrier after a return": (BARRIER, f"if (lane == 31) return; {BARRIER}", "reached by 62 of 64 threads"),
    "a divergent reduction": ("top = simd_max(top);", "if (lane) top = simd_max(top);", "divergent simd_max: 31 of 32"),
    "a divergent call": ("butterfly<E>(v", "if (lane & 1) butterfly<E>(v", "divergent simd_shuffle_xor: 16 of 32"),
    "a read past the end": (
        "x[row * x_shape[1] +",
        "x[row * x_shape[1] + E +",
        "reads byte 1536 of input 'x', which has 1536",
    ),
    "a read before the start": (
        "x[row * x_shape[1] +",
        "x[row * x_shape[1] - E +",
        "bytes before the start of input 'x'",
    ),
    "rows that overlap": (
        "y[row * D",
        "y[row * 60",
        "byte 240 of output 'y': thread 30 writes and thread 32 writes it",
    ),
    "a write to an input": (
        LAST,
        "*(device T*)(&x[row]) = 0; " + LAST,
        "writes byte .* of input 'x', which is read-only",
    ),
    "an output not written": (
        "if (thread_index_in_threadgroup == 0) {",
        "if (row == 0 && lane == 0) {",
        "of output 'largest' is never written",
    ),
    "rows left out": (LAST, "if (row < 5) " + LAST, "byte 1280 of output 'y' is never written"),
    "all lanes write": ("if (lane == 0) part", "part", "writes and thread .* writes it, with no barrier"),
    "an unwritten threadgroup variable": (
        "all, part[k]",
        "all, part[k + 2]",
        "reads byte 8 of threadgroup variable 'part', which nothing",
    ),
    "an index out of a local array": ("v[i] *= 1.0f", "v[i + (lane == 9)] *= 1.0f", "index out of the array's bounds"),
    "an index out of a threadgroup array": ("part[k]", "part[k + 32]", "index out of the array's bounds"),
    "a number no integer holds": (
        "largest[thr",
        "if (int(all * 1e30f) == 1) all = 0.0f; largest[thr",
        "conversion of a number",
    ),
    "a shift too far": ("largest[thr", "all += 1 << (lane + 40); largest[thr", "shift by a negative number or by more"),
}


@pytest.mark.parametrize("name", TOY_FAULTS)
def test_kernel_fault_is_reported(executor: Executor, name: str) -> None:
    right, wrong, message = TOY_FAULTS[name]
    assert right in sample_kernels.SOURCE

    with pytest.raises(KernelFault, match=message):
        sample_kernels.rotate(executor, rows(), sample_kernels.SOURCE.replace(right, wrong))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("i + 2", "byte 12[48] of output 'out', which has 128"),
        ("i + 32", "byte 128 of output 'out', which has 128"),
        ("i + 1000000", "byte 4000000 of output 'out', which has 128"),
        ("int(i) - 1", "4 bytes before the start of output 'out'"),
        ("int(i) - 100000", "400000 bytes before the start of output 'out'"),
    ],
)
def test_out_of_bounds_write_names_the_output(executor: Executor, index: str, message: str) -> None:
    with pytest.raises(KernelFault, match=message):
        run(executor, INDEX + f"out[{index}] = x[i];")


def test_race_between_threadgroups_is_reported(executor: Executor) -> None:
    source = "if (simd_is_first()) out[0] = x[threadgroup_position_in_grid.x];"

    with pytest.raises(KernelFault, match="thread 0 writes and thread 0 writes it, in different threadgroups"):
        run(executor, source, threads=64, size=1)


def test_simdgroup_barrier_orders_only_its_own_lanes(executor: Executor) -> None:
    source = (
        INDEX + "threadgroup float shared[64]; uint t = thread_index_in_threadgroup; shared[t] = x[i & 31];"
        "simdgroup_barrier(mem_flags::mem_threadgroup); out[i] = shared[t ^ DISTANCE];"
    )

    near = run(executor, source.replace("DISTANCE", "1"), threads=64, threadgroup=64)

    assert near.tolist() == [(i ^ 1) & 31 for i in range(64)]
    with pytest.raises(KernelFault, match=r"nothing has written|no barrier between"):
        run(executor, source.replace("DISTANCE", "32"), threads=64, threadgroup=64)


@pytest.mark.parametrize("size", [1, 3, 33])
def test_write_past_an_odd_size_is_reported(executor: Executor, size: int) -> None:
    with pytest.raises(KernelFault, match=f"byte {size} of output 'out', which has {size}"):
        run(executor, INDEX + "out[i] = uchar(1);", threads=size + 1, size=size, dtype=mx.uint8)


def test_uninitialised_local_shows_in_the_result(executor: Executor) -> None:
    out = run(executor, INDEX + "float v; if (i != 3) v = x[i]; out[i] = v;")

    assert [i for i in range(32) if out[i].item() != i] == [3]


def test_shuffle_from_an_inactive_lane_is_reported(executor: Executor) -> None:
    with pytest.raises(KernelFault, match="simd_shuffle_xor: lane 4 reads lane 20, which is not active"):
        run(executor, INDEX + "out[i] = simd_shuffle_xor(x[i], 16);", threads=20)


def test_result_that_depends_on_sum_order_is_reported(executor: Executor) -> None:
    x = mx.random.normal((32,), key=mx.random.key(2))

    with pytest.raises(KernelFault, match="output 'out' element 0 of 32 differs between"):
        run(executor, INDEX + "out[i] = simd_sum(x[i]);", x)


def test_result_that_depends_on_lane_order_is_reported(executor: Executor) -> None:
    source = INDEX + "atomic_exchange_explicit(&out[0], x[i], memory_order_relaxed);"

    with pytest.raises(KernelFault, match="element 0 of 1 differs between forward order"):
        run(executor, source, size=1, atomic=True)


def test_too_much_threadgroup_memory_is_reported(executor: Executor) -> None:
    source = INDEX + "threadgroup float much[8000], more[193]; much[i] = more[i] = 0; out[i] = much[i];"

    with pytest.raises(KernelFault, match="32772 bytes with 'more', and Metal has 32768"):
        run(executor, source)


def test_endless_kernel_is_stopped(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "CPU_SECONDS", 1)

    with pytest.raises(KernelFault, match="still running after 1 seconds"):
        run(executor, INDEX + "while (x[i] >= 0) { } out[i] = 0;")


def test_next_kernel_runs_after_a_fault(executor: Executor) -> None:
    with pytest.raises(KernelFault):
        run(executor, INDEX + "out[i] = x[i + 100000];")

    assert run(executor, INDEX + "out[i] = x[i];").tolist() == list(range(32))


# AddressSanitizer must be loaded before anything else, so it needs its own process.
SANITIZED = """
import sys
import mlx.core as mx
from metal_emulator import sample_kernels
from metal_emulator.executor import Executor
source = sample_kernels.SOURCE.replace(*sys.argv[1:3])
y, _ = sample_kernels.rotate(Executor(), mx.ones((6, 64)), source)
print("sum", y.sum().item())
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS lets no library into a signed program before all others")
@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("butterfly", "butterfly", "sum 48.0"),
        ("butterfly<E>(v", "butterfly<E>(v + 1", "stack-buffer-overflow"),
        ("* signs[(lane * E + i) & 3]", "* (&signs[0])[(lane * E + i) & 7]", "global-buffer-overflow"),
    ],
)
def test_address_sanitizer_finds_small_overflows(right: str, wrong: str, says: str) -> None:
    assert right in sample_kernels.SOURCE
    environment = sanitized() | {"PYTHONPATH": str(Path(sample_kernels.__file__).parents[1])}

    done = subprocess.run(
        [sys.executable, "-c", SANITIZED, right, wrong], env=environment, capture_output=True, text=True, check=False
    )

    assert says in done.stdout + done.stderr
    assert (done.returncode == 0) == (right == wrong)
