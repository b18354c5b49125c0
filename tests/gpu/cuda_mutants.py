"""Run a fault of the CUDA prelude on a CUDA device: `python tests/gpu/cuda_mutants.py NAME` prints what is wrong.

A process runs only one fault: MLX caches compiled kernels by name, and a fault may break the device for its process.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from metal_emulator.mutants.mutated_modules import DECODINGS, ENCODINGS, changed, must_be_same
from metal_emulator.mutants.mutations import CUDA_MUTATIONS


def seen(name: str) -> str:
    """Return what is wrong, or an empty text. Without a name, the prelude has no fault."""
    mlx_kernels = changed(CUDA_MUTATIONS[name] if name else None)
    try:
        must_be_same(mlx_kernels, [*ENCODINGS, *DECODINGS], "cuda")
    except (AssertionError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


if __name__ == "__main__":
    print(seen(" ".join(sys.argv[1:])))  # noqa: T201 - the result
