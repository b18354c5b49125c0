"""Run the service with the emulated Metal backend: `python tests/metal_emulator/serve.py <options of the service>`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hadakv_service.__main__ import main
from metal_emulator.executor import Executor, executing
from metal_emulator.launch import Pass

if __name__ == "__main__":
    # One pass is enough here, because other tests compare passes.
    with executing(Executor(passes=(Pass(),))):
        main()
