"""Selection of the backend on a machine with a GPU."""

import pytest

from hadakv_kernels import open_backend
from support.backends import GPUS_HERE

pytestmark = pytest.mark.skipif(not GPUS_HERE, reason="needs a GPU that MLX can use")


@pytest.mark.parametrize("name", ["auto", *GPUS_HERE])
def test_open_backend_selects_the_gpu(name: str) -> None:
    assert open_backend(name).name == GPUS_HERE[0]
