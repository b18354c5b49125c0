"""The comparison on the GPU detects each of these faults in the CUDA prelude."""

import subprocess
import sys

import pytest

from gpu import cuda_mutants
from metal_emulator.mutants.mutated_modules import changed
from metal_emulator.mutants.mutations import CUDA_MUTATIONS
from support.backends import GPUS_HERE

on_cuda = pytest.mark.skipif("cuda" not in GPUS_HERE, reason="needs a GPU that has CUDA")


def seen(name: str) -> str:
    program = [sys.executable, cuda_mutants.__file__, name]
    return subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip()


@on_cuda
def test_unmodified_kernels_pass_all_proofs() -> None:
    assert seen("") == ""


@on_cuda
@pytest.mark.parametrize("name", CUDA_MUTATIONS)
def test_fault_is_detected(name: str) -> None:
    assert seen(name)


@pytest.mark.parametrize("name", CUDA_MUTATIONS)
def test_every_fault_matches_the_source(name: str) -> None:
    mutation = CUDA_MUTATIONS[name]

    right, wrong = changed(None).header("cuda", "encode"), changed(mutation).header("cuda", "encode")

    assert right.replace(mutation.right, mutation.wrong) == wrong
    assert right != wrong
