"""Fingerprint of the tables. Stored sessions are decoded only with the tables they were encoded with."""

from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from hadakv_kernels import tables

# Sessions are stored with this fingerprint. If it changes, stored sessions can no longer be read.
KNOWN = "49cc0f77dd29b52debbdf7a9596514fd2da91bbde08e5b255771cc7f1c23cef4"


def test_fingerprint_has_not_changed() -> None:
    assert tables.fingerprint() == KNOWN


@pytest.mark.parametrize("codebook", ["mlx-native", "lloyd-max"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("part", ["centroids", "boundaries"])
def test_changed_table_changes_the_fingerprint(part: str, bits: int, codebook: str) -> None:
    original = getattr(tables, part)

    def changed(asked_bits: int, asked_codebook: str) -> NDArray[np.float32]:
        table: NDArray[np.float32] = original(asked_bits, asked_codebook).copy()
        if (asked_bits, asked_codebook) == (bits, codebook):
            table[-1] = np.nextafter(table[-1], np.float32(np.inf))
        return table

    with patch.object(tables, part, changed):
        assert tables.fingerprint.__wrapped__() != KNOWN


@pytest.mark.parametrize("head_dim", [64, 128, 256, 512])
def test_changed_sign_changes_the_fingerprint(head_dim: int) -> None:
    original = tables.sign_bits

    def changed(asked: int) -> NDArray[np.uint8]:
        bits = original(asked).copy()
        # Smaller vectors take the beginning of the table for 256.
        if asked == max(head_dim, 256):
            bits[head_dim // 8 - 1] ^= 1
        return bits

    with patch.object(tables, "sign_bits", changed):
        assert tables.fingerprint.__wrapped__() != KNOWN
