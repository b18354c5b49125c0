"""Test of 64-bit addressing: kernels run on vectors whose offset from the first one does not fit in 32 bits.

No test has that much memory. So the kernel is told that there are FAR more vectors, and that its threadgroups follow
those of the extra vectors. All pointers are moved back by the same amount. An address is then inside the buffers if and
only if it is computed in 64 bits.
"""

from collections.abc import Mapping
from types import ModuleType
from unittest.mock import patch

from metal_emulator.proofs.kernel_calls import Call, Encoding
from metal_emulator.proofs.outputs import outputs

# Close to the maximum number of vectors, and a whole number of threadgroups at every head_dim.
FAR = 2**31 - 2**20

_STREAM = "{0}_BITS == 0 ? 2 * D : D / 8 * {0}_WIDTH"
# Number of elements per vector in each array.
ENCODED = {
    **{"k": "D", "v": "D", "k_packed": _STREAM.format("K"), "v_packed": _STREAM.format("V"), "scaled": "D"},
    **dict.fromkeys(("k_norms", "v_norms", "rms"), "hadakv::Layout<D>::blocks"),
}
# Placeholders have one element, at offset 0.
STAND_INS = """if (thread_index_in_threadgroup + threadgroup_position_in_grid.x + threadgroup_position_in_grid.z == 0) {
    if (!DIAGNOSE) scaled[0] = rms[0] = 0.0f;
    if (STREAMS == 1) v_packed[0] = 0;
    if (STREAMS == 1 || V_BITS == 0) v_norms[0] = 0.0f;
    if (K_BITS == 0) k_norms[0] = 0.0f;
}
"""
DECODED = {"packed": "D / 8 * WIDTH", "norms": "hadakv::Layout<D>::blocks", "values": "D"}


def must_be_same_far(mlx_kernels: ModuleType, call: Call) -> None:
    """Check all outputs of a call for far vectors.

    Raises:
        AssertionError: an output differs from the reference.
        KernelFault: an address is out of bounds.
    """
    name = "encode_kernel" if isinstance(call, Encoding) else "decode_kernel"
    read = mlx_kernels.source
    moved = STAND_INS + _moved(read(name), ENCODED) if isinstance(call, Encoding) else _moved(read(name), DECODED)
    make = vars(mlx_kernels)[name]
    make.cache_clear()
    with patch.object(mlx_kernels, "source", lambda part: moved if part == name else read(part)):
        found = outputs(mlx_kernels, call)
    make.cache_clear()
    for output in found:
        output.must_be_same()


def _moved(body: str, arrays: Mapping[str, str]) -> str:
    outer = [f"auto far_{name} = {name} - ulong({FAR}u) * ({elements});" for name, elements in arrays.items()]
    inner = [f"auto {name} = far_{name};" for name in arrays]
    return "\n".join(
        [
            *outer,
            f"const uint far_rows = rows[0] + {FAR}u;",
            "uint3 far_position = threadgroup_position_in_grid;",
            f"far_position.x += {FAR}u / (simdgroups_per_threadgroup * uint(hadakv::Layout<D>::vectors));",
            "{",
            *inner,
            "const uint rows[1] = {far_rows};",
            "const uint3 threadgroup_position_in_grid = far_position;",
            body,
            "}",
        ]
    )
