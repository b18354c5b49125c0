"""Service whose device blocks in encode until the test writes to a pipe."""

# The first argument is the path of the pipe. Each call of encode waits until the pipe was written to and closed.
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
