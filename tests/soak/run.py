"""Soak test: `python tests/soak/run.py [--seconds N] [--clients N] [--seed N]`; see docs/testing.md."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from soak.soak import main

    main()
