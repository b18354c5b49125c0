"""Each deliberate fault in the kernels or their launches is detected by the expected proofs."""

import pytest

from metal_emulator.mutants.mutations import MUTATIONS
from metal_emulator.mutants.run import Verdict, verdict


def test_unmodified_kernels_pass_all_proofs() -> None:
    assert verdict(None) == Verdict("", "", "")


@pytest.mark.parametrize("name", MUTATIONS)
def test_fault_is_detected(name: str) -> None:
    mutation = MUTATIONS[name]

    found = verdict(mutation)

    assert found.seen_by
    assert found.seen_by == mutation.seen_by, found
