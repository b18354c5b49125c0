"""The tier's file: what pages in it come to."""

from pathlib import Path

import numpy as np
import pytest

from hadakv_kernels import Encoded
from hadakv_service.storage.disk.interface import PageContent
from hadakv_service.storage.disk.sqlite_file import BLOCK_NBYTES, FILE
from hadakv_service.storage.disk.sqlite_store import SqliteStore

# What a file has before there is any page, and at most what is left over in the last blocks of its trees.
EMPTY_NBYTES, REST_NBYTES = 10 * BLOCK_NBYTES, 8 * BLOCK_NBYTES


def content(nbytes: int) -> PageContent:
    """A page of so many bytes."""
    stream = Encoded(np.zeros((1, 8, 1, nbytes // 16), np.uint8), np.zeros((1, 8, 1, 0), np.float32))
    return PageContent(stream, stream)


@pytest.mark.parametrize(
    "nbytes", [304, 2000, 8000, 15_008, 16_160, 17_008, 32_000, 33_008, 64_000, 66_000, 278_528, 1_000_000, 8_912_896]
)
def test_the_file_is_about_as_large_as_what_is_counted(tmp_path: Path, nbytes: int) -> None:
    count = max(10, min(1000, (16 << 20) // nbytes))
    tier = SqliteStore(tmp_path, 1 << 40)
    with tier.transaction() as change:
        for _ in range(count):
            change.add_page(content(nbytes))
    counted = tier.used
    tier.close()

    size = (tmp_path / FILE).stat().st_size
    assert size - EMPTY_NBYTES - REST_NBYTES <= counted <= 1.4 * size


def test_what_is_removed_is_counted_out_and_what_stays_is_counted_alike_later(tmp_path: Path) -> None:
    tier = SqliteStore(tmp_path, 1 << 40)
    with tier.transaction() as change:
        rows = [change.add_page(content(nbytes)) for nbytes in (304, 17_008, 278_528, 17_008)]
    before = tier.used

    with tier.transaction() as change:
        change.remove_pages(rows[1:2])

    assert before - tier.used == tier.page_nbytes(17_008)
    with tier.transaction() as change:
        change.remove_pages(rows)
    assert tier.used == 0
    tier.close()


def test_a_file_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    SqliteStore(tmp_path, 1 << 30).close()
    (tmp_path / FILE).chmod(0o644)

    tier = SqliteStore(tmp_path, 1 << 30)

    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    tier.close()
    assert set(modes.values()) == {0o600}, modes
