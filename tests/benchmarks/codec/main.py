"""Benchmarks of the codec on the CPU: `python tests/benchmarks/codec/main.py [--quick] [--json FILE]`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # This script's folder would hide the standard library's http behind a file of its own.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from benchmarks.codec.run import main

    main()
