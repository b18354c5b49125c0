"""The reference and every backend equal the recorded outputs of the reference Metal kernels."""

import numpy as np
import pytest

from hadakv_kernels import Backend, CodecSpec, Encoded, Stream, reference
from support.backends import on_host
from support.inputs import golden
from support.inputs.golden import GoldenStream


def matches(got: Encoded, stream: GoldenStream) -> bool:
    return (
        got.packed.dtype == np.uint8
        and got.norms.dtype == np.float32
        and np.array_equal(got.packed, stream.packed)
        and np.array_equal(got.norms.view(np.uint32), stream.norms.view(np.uint32))
    )


def spec_of(stream: GoldenStream) -> CodecSpec:
    return stream.codec.at(stream.x.shape[-1])


def test_golden_files_are_complete() -> None:
    recorded = [case for kernel in golden.KERNELS for case in golden.cases(kernel)]

    assert len(golden.KERNELS) == 12
    assert len(recorded) == len({case.id for case in recorded}) == 1260
    assert sum(len(case.streams) for case in recorded) == 1890


@pytest.mark.parametrize("kernel", golden.KERNELS)
def test_reference_equals_golden_files(kernel: str) -> None:
    wrong = [
        case.id
        for case in golden.cases(kernel)
        if not all(matches(reference.encode(stream.x, spec_of(stream)), stream) for stream in case.streams)
    ]

    assert wrong == []


@pytest.mark.parametrize("kernel", golden.KERNELS)
def test_backend_equals_golden_files(kernel: str, backend: Backend) -> None:
    wrong = []

    for case in golden.cases(kernel):
        streams = backend.encode([Stream(stream.x, spec_of(stream)) for stream in case.streams])
        got = [on_host(backend, encoded) for encoded in streams]
        if not all(map(matches, got, case.streams)) or len(got) != len(case.streams):
            wrong.append(case.id)

    assert wrong == []
