"""The kernels on vectors so far from the first that their place takes more than 32 bits to say.

No memory is that large here. The kernel is told that it has FAR vectors more than there are and that its threadgroups
come after those that would have done them, and every pointer is moved back by as much: an address is within the
buffers if, and only if, it was worked out in 64 bits.
"""

from collections.abc import Mapping
from types import ModuleType
from unittest.mock import patch

from metal_emulator.proofs.kernel_calls import Call, Encoding
from metal_emulator.proofs.outputs import outputs

# The last that kernels can count to, nearly, and whole threadgroups at every head_dim.
FAR = 2**31 - 2**20

_STREAM = "{0}_BITS == 0 ? 2 * D : D / 8 * {0}_WIDTH"
# Elements a vector has in each array.
ENCODED = {
    **{"k": "D", "v": "D", "k_packed": _STREAM.format("K"), "v_packed": _STREAM.format("V"), "scaled": "D"},
    **dict.fromkeys(("k_norms", "v_norms", "rms"), "hadakv::Layout<D>::blocks"),
}
# Stand-ins have one element, which is not far.
STAND_INS = """if (thread_index_in_threadgroup + threadgroup_position_in_grid.x + threadgroup_position_in_grid.z == 0) {
    if (!DIAGNOSE) scaled[0] = rms[0] = 0.0f;
    if (STREAMS == 1) v_packed[0] = 0;
    if (STREAMS == 1 || V_BITS == 0) v_norms[0] = 0.0f;
    if (K_BITS == 0) k_norms[0] = 0.0f;
}
"""
DECODED = {"packed": "D / 8 * WIDTH", "norms": "hadakv::Layout<D>::blocks", "values": "D"}


def must_be_same_far(mlx_kernels: ModuleType, call: Call) -> None:
    """Refuse any difference in what a call writes there.

    Raises:
        AssertionError: there is one.
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
