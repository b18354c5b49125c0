"""Benchmark of session files: `python tests/benchmarks/files/main.py [--gib N] [--data-dir DIR] [--json FILE]`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from benchmarks.files.run import main

    main()
