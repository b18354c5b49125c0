"""The program `hadakv` as `python -m hadakv_client`."""

import sys

from hadakv_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
