"""Benchmarks of the service over HTTP: `python tests/benchmarks/http/main.py [--quick] [--json FILE]`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The folder of this script would shadow the http package of the standard library.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from benchmarks.http.run import main

    main()
