"""The backend that is picked on a machine with a GPU."""

import pytest

from hadakv_kernels import open_backend
from support.backends import GPUS_HERE

pytestmark = pytest.mark.skipif(not GPUS_HERE, reason="needs a GPU that MLX can use")


@pytest.mark.parametrize("name", ["auto", *GPUS_HERE])
def test_the_gpu_proves_itself_and_is_picked(name: str) -> None:
    assert open_backend(name).name == GPUS_HERE[0]
