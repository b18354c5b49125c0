"""Run a copy of the service instead of the installed one: `python run_mutated.py FOLDER FLAGS...`."""

import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class Finder:
    """Finder that loads `hadakv_service` from a folder."""

    folder = sys.argv[1]

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of that package; None for other packages."""
        if name.partition(".")[0] != "hadakv_service":
            return None
        return PathFinder.find_spec(name, path or [cls.folder], target)


sys.meta_path.insert(0, Finder)
del sys.argv[1]
runpy.run_module("hadakv_service", run_name="__main__", alter_sys=True)
