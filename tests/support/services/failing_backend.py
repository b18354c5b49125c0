"""Service with a backend that fails on purpose."""

# Decoding always fails, and encoding fails for 13 tokens.
FAILING = """
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.__main__ import main

encode = CpuBackend.encode

def decode_or_fail(self, *_, **__):
    raise RuntimeError("out of order")

def encode_or_fail(self, streams):
    if any(stream.x.shape[-2] == 13 for stream in streams):
        raise RuntimeError("out of order")
    return encode(self, streams)

CpuBackend.decode, CpuBackend.encode = decode_or_fail, encode_or_fail
main()
"""

PROGRAM = ("-c", FAILING)

# The norms of every encoded vector are too large.
WRONG = """
from hadakv_kernels import Encoded
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.__main__ import main

encode = CpuBackend.encode
CpuBackend.encode = lambda self, streams: [Encoded(each.packed, 2 * each.norms) for each in encode(self, streams)]
main()
"""

WRONG_PROGRAM = ("-c", WRONG)
