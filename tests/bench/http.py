"""Benchmarks of the service over HTTP: `python tests/bench/http.py [--quick] [--json FILE]`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # This script's folder would hide the standard library's http behind this file.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from bench.http_run import main

    main()
