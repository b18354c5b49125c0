"""The program `hadakv` as `python -m hadakv_cli`."""

import sys

from hadakv_cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
