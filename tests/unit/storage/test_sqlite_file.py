"""The SQLite file: counted sizes, permissions."""

from pathlib import Path

import numpy as np
import pytest

from hadakv_kernels import Encoded
from hadakv_service.storage.disk.interface import PageContent
from hadakv_service.storage.disk.sqlite_file import BLOCK_NBYTES, FILE
from hadakv_service.storage.disk.sqlite_store import SqliteStore

# Size of a file without pages; maximum unused space in the last blocks of its trees.
EMPTY_NBYTES, REST_NBYTES = 10 * BLOCK_NBYTES, 8 * BLOCK_NBYTES


def content(nbytes: int) -> PageContent:
    """Return a page of `nbytes` bytes."""
    stream = Encoded(np.zeros((1, 8, 1, nbytes // 16), np.uint8), np.zeros((1, 8, 1, 0), np.float32))
    return PageContent(stream, stream)


@pytest.mark.parametrize(
    "nbytes", [304, 2000, 8000, 15_008, 16_160, 17_008, 32_000, 33_008, 64_000, 66_000, 278_528, 1_000_000, 8_912_896]
)
def test_file_size_is_close_to_counted_bytes(tmp_path: Path, nbytes: int) -> None:
    count = max(10, min(1000, (16 << 20) // nbytes))
    store = SqliteStore(tmp_path, 1 << 40)
    with store.transaction() as transaction:
        for _ in range(count):
            transaction.add_page(content(nbytes))
    counted = store.used
    store.close()

    size = (tmp_path / FILE).stat().st_size
    assert size - EMPTY_NBYTES - REST_NBYTES <= counted <= 1.4 * size


def test_removed_pages_are_no_longer_counted(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, 1 << 40)
    with store.transaction() as transaction:
        page_ids = [transaction.add_page(content(nbytes)) for nbytes in (304, 17_008, 278_528, 17_008)]
    before = store.used

    with store.transaction() as transaction:
        transaction.remove_pages(page_ids[1:2])

    assert before - store.used == store.page_nbytes(17_008)
    with store.transaction() as transaction:
        transaction.remove_pages(page_ids)
    assert store.used == 0
    store.close()


def test_file_readable_by_others_becomes_private(tmp_path: Path) -> None:
    SqliteStore(tmp_path, 1 << 30).close()
    (tmp_path / FILE).chmod(0o644)

    store = SqliteStore(tmp_path, 1 << 30)

    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    store.close()
    assert set(modes.values()) == {0o600}, modes
