"""Command `serve`: runs the service in this process."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Never

# The clients do not depend on the service. Its main function is looked up by name, like a plugin.
_SERVICE = "hadakv_service.__main__"


def run_service(flags: Sequence[str]) -> Never:
    """Run the service in this process.

    Args:
        flags: flags of the service.

    Raises:
        SystemExit: at the end of the service.
    """
    sys.argv = ["hadakv serve", *flags]
    import_module(_SERVICE).main()
    sys.exit(0)
