"""The service, on a machine that seems to have Metal: `python tests/metal/serve.py <the service's options>`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hadakv_service.__main__ import main
from metal.executor import Executor, executing
from metal.launch import Pass

if __name__ == "__main__":
    # One pass: what the kernels compute is compared elsewhere, here it has to be served.
    with executing(Executor(passes=(Pass(),))):
        main()
