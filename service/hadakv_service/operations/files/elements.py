"""Check the elements of packed vectors and norms that come from outside."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hadakv_kernels import CodecSpec, Encoded
from hadakv_service.errors import InvalidRequest

# These bits are all ones in an infinity or NaN.
FLOAT16_EXPONENT = 0x7C00


def check_elements(stream: Encoded, spec: CodecSpec, names: Sequence[str], first_token: int = 0) -> None:
    """Check that a codec can have produced a stream.

    Args:
        stream: packed uint8 `[layers, kv_heads, tokens, row_bytes]`, and norms float32 with the same leading axes.
        spec: codec of the stream.
        names: start of the tensor names of each layer, or one for all layers.
        first_token: index of the first token within the tensor, for the message.

    Raises:
        InvalidRequest: it cannot. The field is the first such tensor.
    """
    for part, fault, invalid in _invalid_vectors(stream.packed, stream.norms, spec):
        if invalid.any():
            layer, head, token = map(int, np.unravel_index(invalid.argmax(), invalid.shape))
            place = f"head {head}, token {first_token + token}"
            if len(names) == 1 and len(invalid) > 1:
                place = f"layer {layer} of the run, {place}"
            raise InvalidRequest(
                [(f"{names[layer if len(names) > 1 else 0]}.{part}", f"has {fault} at {place}; nothing was stored")]
            )


def _invalid_vectors(
    packed: NDArray[np.uint8], norms: NDArray[np.float32], spec: CodecSpec
) -> Iterator[tuple[str, str, Any]]:
    """Yield each possible fault: name of the tensor, the fault, and for each vector whether it has it, bool."""
    codec = spec.codec
    if codec.kind == "float16":
        exponents = packed.view(np.uint16) & FLOAT16_EXPONENT
        yield "values", "NaN or infinity", exponents.max(axis=-1) == FLOAT16_EXPONENT
        return
    yield "norms", "NaN, infinity or a negative number", ~(np.isfinite(norms) & (norms >= 0)).all(axis=-1)
    if codec.layout == "byte" and codec.bits < 8:
        yield "packed", f"a byte that is no index of {codec.bits} bits", packed.max(axis=-1) >= 1 << codec.bits
