"""Golden data of the reference Metal kernels: the service returns the same packed bytes and norm bits."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import Encoded
from support.contract import Answer, Caller, Json, array, encoded_stream, tensor
from support.inputs import golden
from support.inputs.golden import GoldenCase, GoldenStream

pytestmark = pytest.mark.every_backend(exhaustive=True)


def content(case: GoldenCase) -> tuple[object, ...]:
    """Return a case without its place in the kernel's cache, which the service does not have."""
    return tuple((s.codec, s.x.tobytes(), s.packed.tobytes(), s.norms.tobytes()) for s in case.streams)


def distinct(kernel: str) -> list[GoldenCase]:
    """Return one case for each different content."""
    return list({content(case): case for case in golden.cases(kernel)}.values())


def of_one_token(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Reshape `[kv_heads, ...]` to `[layers, kv_heads, tokens, ...]`."""
    return values[None, :, None]


def expected(stream: GoldenStream) -> Json:
    return encoded_stream(Encoded(of_one_token(stream.packed), of_one_token(stream.norms)), stream.codec)


def append(caller: Caller, session: str, case: GoldenCase) -> Answer:
    k, v = case.streams
    codec = {"k": k.codec.to_mapping(), "v": v.codec.to_mapping()}
    return caller.append(session, of_one_token(k.x), of_one_token(v.x), codec=codec)


PAIRS = [kernel for kernel in golden.KERNELS if len(next(golden.cases(kernel)).streams) == 2]
SINGLES = [kernel for kernel in golden.KERNELS if kernel not in PAIRS]


def test_every_golden_case_is_tested() -> None:
    recorded = [case for kernel in golden.KERNELS for case in golden.cases(kernel)]
    tested = [case for kernel in golden.KERNELS for case in distinct(kernel)]

    assert (len(PAIRS), len(SINGLES)) == (6, 6)
    assert len({case.id for case in tested}) == len(tested) > 200
    assert {content(case) for case in tested} == {content(case) for case in recorded}


@pytest.mark.parametrize("kernel", PAIRS)
def test_append_matches_the_dual_kernel(caller: Caller, session: str, kernel: str) -> None:
    wrong = []

    for number, case in enumerate(distinct(kernel)):
        name = f"{session}.{number}"
        response = append(caller, name, case)
        streams = dict(zip("kv", map(expected, case.streams), strict=True))
        if not (response.body.items() >= streams.items() and caller.read(name).items() >= streams.items()):
            wrong.append(case.id)

    assert wrong == []


@pytest.mark.parametrize("kernel", SINGLES)
def test_encode_matches_the_kernel(caller: Caller, kernel: str) -> None:
    wrong = []

    for case in distinct(kernel):
        (stream,) = case.streams
        response = caller.post("/encode", {"x": tensor(of_one_token(stream.x)), "codec": stream.codec.to_mapping()})
        if response.body != expected(stream):
            wrong.append(case.id)

    assert wrong == []


@pytest.mark.every_backend
@pytest.mark.parametrize("kernel", SINGLES)
def test_encode_of_a_batch_matches_the_kernel(caller: Caller, kernel: str) -> None:
    streams = [case.streams[0] for case in distinct(kernel)]
    first = streams[0].codec
    alike = [stream for stream in streams if stream.codec == first]

    response = caller.post(
        "/encode", {"x": tensor(np.stack([stream.x for stream in alike])), "codec": first.to_mapping()}
    )

    together = Encoded(np.stack([s.packed for s in alike]), np.stack([s.norms for s in alike]))
    assert len(alike) > 1
    assert response.body == encoded_stream(together, first)


RINGS = [case for kernel in golden.KERNELS for case in golden.cases(kernel) if case.ring]


@pytest.mark.parametrize("case", RINGS, ids=lambda case: case.id)
def test_ring_layout_matches_the_kernel(caller: Caller, case: GoldenCase, session: str) -> None:
    k, v = (case.streams * 2)[:2]
    codec = {"k": k.codec.to_mapping(), "v": v.codec.to_mapping()}
    before = np.random.default_rng(0).standard_normal((1, k.x.shape[0], case.position, k.x.shape[-1]))
    caller.put(f"/sessions/{session}", {"window": case.ring, "codec": codec})
    caller.append(session, before.astype(np.float32), before.astype(np.float32))
    caller.append(session, of_one_token(k.x), of_one_token(v.x))

    ring = caller.read(session, layout="ring")

    assert case.ring is not None
    row = case.position % case.ring
    for name, expected in (("k", k), ("v", v)):
        got = {part: array(wire)[0, :, row] for part, wire in ring[name].items()}
        if expected.codec.kind == "float16":
            np.testing.assert_array_equal(got["values"].view(np.uint8), expected.packed)
        else:
            np.testing.assert_array_equal(got["packed"], expected.packed)
            np.testing.assert_array_equal(got["norms"].view(np.uint32), expected.norms.view(np.uint32))
