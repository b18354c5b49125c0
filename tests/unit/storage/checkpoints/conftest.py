"""A store that writes checkpoints."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.inputs.checkpointed import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.store._writer.close()
    place.store.disk.close()
