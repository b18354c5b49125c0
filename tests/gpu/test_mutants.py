"""The comparison on the GPU bites: each of these faults in CUDA's prelude is seen by it."""

import subprocess
import sys
from pathlib import Path

import pytest

from backends import GPUS_HERE
from metal import mutants
from metal.mutations import CUDA_MUTATIONS

on_cuda = pytest.mark.skipif("cuda" not in GPUS_HERE, reason="needs a GPU that has CUDA")


def seen(name: str) -> str:
    # A fault can leave a process without its device.
    program = [sys.executable, str(Path(mutants.__file__)), "cuda", name]
    return subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip()


@on_cuda
def test_without_a_fault_nothing_is_seen() -> None:
    assert seen("") == ""


@on_cuda
@pytest.mark.parametrize("name", CUDA_MUTATIONS)
def test_a_fault_is_seen(name: str) -> None:
    assert seen(name)


@pytest.mark.parametrize("name", CUDA_MUTATIONS)
def test_every_fault_has_its_place_in_the_sources(name: str) -> None:
    right = mutants.changed(None).header("cuda", "encode")
    wrong = mutants.changed(CUDA_MUTATIONS[name]).header("cuda", "encode")

    assert right.replace(CUDA_MUTATIONS[name].right, CUDA_MUTATIONS[name].wrong) == wrong != right
