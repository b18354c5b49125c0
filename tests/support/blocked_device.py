"""A service whose device can be held: it encodes when the test says so, by writing into a pipe."""

# The first argument names the pipe: each call to encode waits until something has been written and the pipe closed.
HELD = """
import sys
from hadakv_kernels.cpu import CpuBackend
from hadakv_service.__main__ import main

gate, encode = sys.argv.pop(1), CpuBackend.encode

def wait_and_encode(self, streams):
    with open(gate, "rb") as pipe:
        pipe.read()
    return encode(self, streams)

CpuBackend.encode = wait_and_encode
main()
"""
