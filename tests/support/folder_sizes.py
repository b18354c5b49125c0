"""Check that no source folder has too many modules: `python tests/support/folder_sizes.py FOLDER...`."""

import sys
from collections import Counter
from pathlib import Path

MAX_MODULES = 10


def crowded_folders(roots: list[Path]) -> dict[Path, int]:
    """Return the folders below the roots that have more than `MAX_MODULES` modules, and how many each has.

    `__init__.py` and `__main__.py` do not count: they hold no code of their own, or start the package.
    """
    modules = (path for root in roots for path in root.rglob("*.py") if not path.stem.startswith("__"))
    counts = Counter(path.parent for path in modules)
    return {folder: count for folder, count in counts.items() if count > MAX_MODULES}


def main() -> None:
    """Exit with the crowded folders, if there are any."""
    crowded = crowded_folders([Path(name) for name in sys.argv[1:]])
    if crowded:
        sys.exit(
            "\n".join(
                f"{folder}: {count} modules, at most {MAX_MODULES} are allowed" for folder, count in crowded.items()
            )
        )


if __name__ == "__main__":
    main()
