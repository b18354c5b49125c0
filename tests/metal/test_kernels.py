"""The Metal source of the kernels on the emulator: all outputs equal the reference to the bit."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hadakv_kernels import BITS, HEAD_DIMS, Codec, Encoded, Stream, reference, tables
from hadakv_kernels.codec import CHOICES
from hadakv_kernels.gpu import GpuBackend, mlx_kernels
from metal_emulator.compile.compiler import sanitized
from metal_emulator.executor import Executor, executing
from metal_emulator.launch import THREE_PASSES, Pass
from metal_emulator.proofs import kernel_calls as calls
from metal_emulator.proofs.hard_vectors import ROWS, boundary_vectors, hard_vectors, unrotated_bytes
from metal_emulator.proofs.kernel_calls import Call, Decoding, Encoding
from metal_emulator.proofs.outputs import check, check_decoding, check_encoding
from support.backends import without_denormals
from support.covering import thinned
from support.inputs import golden
from unit.kernels.backends.test_golden import matches, spec_of


@pytest.fixture
def executor() -> Iterator[Executor]:
    with executing() as executor:
        yield executor


def prove(executor: Executor, some: Sequence[Call], rows: int = 101) -> None:
    # Compile all calls together, which is many times faster than one by one.
    executor.prepare(calls.planned(executor, mlx_kernels, some, rows))
    for call in some:
        check(mlx_kernels, call, slice(rows))


def prove_once_each(executor: Executor, some: Sequence[Call]) -> None:
    # There are hundreds of calls, so each of them runs in only one of the three ways.
    executor.prepare(calls.planned(executor, mlx_kernels, some))
    for call, way in zip(some, cycle(THREE_PASSES), strict=False):
        executor.passes = (way,)
        check(mlx_kernels, call)


# ---- variants ----


def by_head_dim(every: Sequence[Call], representative: Sequence[Call]) -> list[Any]:
    """Group calls by head_dim: the representative ones, and the others for exhaustive runs."""
    always = set(representative)
    assert always <= set(every)
    parameters = []
    for head_dim in HEAD_DIMS:
        here = [call for call in every if call.head_dim == head_dim]
        parameters.append(pytest.param([call for call in here if call in always], id=f"d{head_dim}"))
        others = [call for call in here if call not in always]
        parameters.append(pytest.param(others, id=f"d{head_dim}-others", marks=pytest.mark.exhaustive))
    return parameters


@pytest.mark.parametrize("some", by_head_dim(calls.single_encodings(), calls.representative_encodings()))
def test_encode_kernels_equal_reference(executor: Executor, some: Sequence[Call]) -> None:
    prove_once_each(executor, some)


@pytest.mark.parametrize("some", by_head_dim(calls.decodings(), calls.representative_decodings()))
def test_decode_kernels_equal_reference(executor: Executor, some: Sequence[Call]) -> None:
    prove_once_each(executor, some)


@pytest.mark.parametrize("some", by_head_dim(calls.diagnosing(), calls.representative_encodings(diagnose=True)))
def test_diagnose_kernels_equal_reference(executor: Executor, some: Sequence[Call]) -> None:
    prove_once_each(executor, some)


PAIRS = [call for head_dim in HEAD_DIMS for call in calls.some_pairs(head_dim)]


@pytest.mark.parametrize("some", by_head_dim(PAIRS, calls.representative_pairs()))
def test_two_stream_kernels_equal_reference(executor: Executor, some: Sequence[Call]) -> None:
    prove_once_each(executor, some)


@pytest.mark.parametrize("rotation", CHOICES["rotation"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_vectors_are_on_both_sides_of_the_smallest_norm(head_dim: int, rotation: str) -> None:
    norms = reference.encode(hard_vectors(head_dim), Codec(rotation=rotation).at(head_dim)).norms

    close = norms[np.abs(norms / 1e-10 - 1) < 1e-6]
    assert (close > reference.SMALLEST_NORM).any()
    assert (close <= reference.SMALLEST_NORM).any()


# ---- ways to run ----


@pytest.mark.parametrize("rows", [1, 7, 33])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_result_does_not_depend_on_lane_order(executor: Executor, head_dim: int, rows: int) -> None:
    executor.passes = THREE_PASSES

    prove(executor, calls.one_of_each(head_dim), rows)


@pytest.mark.parametrize("threadgroups", [1, 3])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_small_grids_process_vectors_in_strides(
    executor: Executor, head_dim: int, threadgroups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx_kernels, "MAX_THREADGROUPS", threadgroups)
    executor.passes = THREE_PASSES

    prove(executor, calls.one_of_each(head_dim))

    # At head_dim 64 there is less work than for three threadgroups.
    elements = mlx_kernels.THREADGROUP * mlx_kernels.elements_per_lane(head_dim)
    most = min(threadgroups, -(-ROWS[head_dim] * head_dim // elements))
    assert {dispatch.grid[0] for dispatch in executor.dispatches} == {most * mlx_kernels.THREADGROUP}


FLUSHED = (Codec(), Codec(8, norm="unbiased"), Codec(3, rotation="none"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_flushed_denormals_change_no_ordinary_vector(executor: Executor, head_dim: int, dtype: str) -> None:
    executor.passes = (Pass(flush_denormals=True),)
    x = hard_vectors(head_dim, dtype)
    meets_none = without_denormals(x)
    # Even the smallest float16 does not lead to a denormal float32.
    assert meets_none.all() if dtype == "float16" else meets_none.sum() > len(x) / 3
    for codec in FLUSHED:
        expected = reference.encode(x, codec.at(head_dim))

        packed, norms, *_ = map(calls.on_host, Encoding(dtype, codec.at(head_dim)).run(mlx_kernels, x))

        np.testing.assert_array_equal(packed[meets_none], expected.packed[meets_none])
        np.testing.assert_array_equal(norms[meets_none], expected.norms[meets_none])


def test_flushed_denormal_element_becomes_zero(executor: Executor) -> None:
    executor.passes = (Pass(flush_denormals=True),)
    x = np.full((1, 64), 1e-40, np.float32)
    x[0, 0] = 1
    spec = Codec(rotation="none").at(64)

    flushed, *_ = map(calls.on_host, Encoding("float32", spec).run(mlx_kernels, x))

    # Zero is on a boundary, so it gets the index below.
    x[0, 1:] = 0
    np.testing.assert_array_equal(flushed, reference.encode(x, spec).packed)


# ---- boundaries ----


@pytest.mark.parametrize("rows", thinned((HEAD_DIMS, BITS, CHOICES["codebook"]), name="d{}".format))
def test_value_on_a_boundary_gets_the_index_below(executor: Executor, rows: list[Any]) -> None:
    executor.passes = (Pass(),)
    specs = [unrotated_bytes(bits, codebook, head_dim) for head_dim, bits, codebook in rows]
    executor.prepare(calls.planned(executor, mlx_kernels, [Encoding("float32", spec) for spec in specs]))
    for spec in specs:
        x = boundary_vectors(spec)
        scaled = reference.diagnose(x, spec).scaled

        packed = calls.on_host(Encoding("float32", spec).run(mlx_kernels, x)[0])

        boundaries = tables.boundaries(spec.codec.bits, spec.codec.codebook)
        np.testing.assert_array_equal(packed, np.searchsorted(boundaries, scaled, side="left"))


@pytest.mark.parametrize("d512_scale", [16.0, 0.3, 1e-30, 1e30])
@pytest.mark.usefixtures("executor")
def test_d512_scale_equals_reference(d512_scale: float) -> None:
    specs = [Codec(6, norm=norm, d512_scale=d512_scale).at(512) for norm in CHOICES["norm"]]
    x = np.random.default_rng(0).standard_normal((9, 512)).astype(np.float32)

    for spec in specs:
        encoded = reference.encode(x, spec)
        check_encoding(mlx_kernels, Encoding("float32", spec, diagnose=True), x, x)
        check_decoding(mlx_kernels, Decoding("bfloat16", spec), encoded.packed, encoded.norms)


# ---- non-finite values and golden files ----


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_nonfinite_vector_is_detected_and_isolated(executor: Executor, head_dim: int) -> None:
    executor.passes = (Pass(),)
    backend = GpuBackend("metal")
    x = np.random.default_rng(1).standard_normal((31, head_dim)).astype(np.float32)
    bad = x.copy()
    bad[3, 0], bad[4, -1], bad[17, head_dim // 2], bad[29, 5], bad[30] = np.nan, np.inf, -np.inf, 3e38, 3e38
    good = [i for i in range(31) if i not in (3, 4, 17, 29, 30)]
    specs = [codec.at(head_dim) for codec in calls.CODECS if codec.layout == "dense"]
    with executor.plan() as dispatches:
        backend.encode([Stream(bad, spec) for spec in specs])
    executor.prepare(dispatches)

    encoded = backend.encode([Stream(bad, spec) for spec in specs])

    for spec, got in zip(specs, encoded, strict=True):
        each = [Encoded(got.packed[i : i + 1], got.norms[i : i + 1]) for i in range(31)]
        assert [i for i in range(31) if backend.all_finite(each[i], spec)] == good
        clean = reference.encode(x, spec)
        assert np.array_equal(got.packed[good], clean.packed[good])
        assert np.array_equal(got.norms[good], clean.norms[good])


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_nonfinite_norm_does_not_affect_neighbours(executor: Executor, head_dim: int) -> None:
    executor.passes = (Pass(),)
    spec = Codec(5).at(head_dim)
    clean = reference.encode(hard_vectors(head_dim)[:20], spec)
    bad = Encoded(clean.packed, clean.norms.copy())
    bad.norms[[2, 9, 11]] = np.array([[np.nan], [np.inf], [-3e38]])

    for dtype in calls.NAMES:
        got = GpuBackend("metal").decode(bad, spec, dtype)
        expected = reference.decode(clean, spec, dtype)
        assert np.array_equal(np.delete(got, [2, 9, 11], axis=0), np.delete(expected, [2, 9, 11], axis=0))


@pytest.mark.parametrize("kernel", golden.KERNELS)
def test_kernels_equal_golden_files(executor: Executor, kernel: str) -> None:
    executor.passes = (Pass(),)
    backend = GpuBackend("metal")
    cases = list(golden.cases(kernel))
    streams = [[Stream(stream.x, spec_of(stream)) for stream in case.streams] for case in cases]
    with executor.plan() as dispatches:
        for some in streams:
            backend.encode(some)
    executor.prepare(dispatches)

    got = [backend.encode(some) for some in streams]

    wrong = [
        case.id
        for case, encoded in zip(cases, got, strict=True)
        if not all(map(matches, encoded, case.streams)) or len(encoded) != len(case.streams)
    ]
    assert cases
    assert wrong == []
    assert all(len(some) == 1 or dispatch.grid[2] == 2 for some, dispatch in zip(streams, dispatches, strict=True))


# AddressSanitizer must be loaded before anything else, so it needs its own process.
SANITIZED = """
from hadakv_kernels.gpu import mlx_kernels
from metal_emulator.proofs import kernel_calls as calls
from metal_emulator.compile.compiler import sanitized
from metal_emulator.proofs.outputs import check
from metal_emulator.executor import executing
with executing() as executor:
    some = [call for head_dim in (64, 512) for call in calls.one_of_each(head_dim)]
    executor.prepare(calls.planned(executor, mlx_kernels, some))
    for call in some:
        check(mlx_kernels, call)
print(executor.compiler.sanitize, len(some))
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS lets no library into a signed program before all others")
def test_address_sanitizer_finds_nothing() -> None:
    environment = sanitized() | {"PYTHONPATH": str(Path(__file__).parents[1])}
    program = [sys.executable, "-c", SANITIZED]

    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert done.stdout == "True 14\n"
