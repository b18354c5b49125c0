"""Benchmarks of the codec on the CPU: `python tests/benchmarks/codec/main.py [--quick] [--json FILE]`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The folder of this script would shadow the http package of the standard library.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from benchmarks.codec.run import main

    main()
