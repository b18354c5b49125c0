"""A disk of its own for the data directory, which can be full: a file system in memory, where this may mount one."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_INSIDE = "HADAKV_FAULTS_NAMESPACE"
_ROOMY = "4g"


def enter_namespace() -> None:
    """Start this program once more where it may mount, if there is such a place; what it mounts nobody else sees."""
    if sys.platform != "linux" or _INSIDE in os.environ or not shutil.which("unshare"):
        return
    for unshare in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        with tempfile.TemporaryDirectory() as folder:
            mount = [*unshare, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
            done = subprocess.run(mount, capture_output=True, timeout=60, check=False)
        if done.returncode == 0:
            os.environ[_INSIDE] = "1"
            os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])


def can_mount() -> bool:
    """Whether `small_disk` works here."""
    return _INSIDE in os.environ


@contextmanager
def small_disk(folder: Path, data: Path) -> Iterator["Disk"]:
    """The data directory on a disk of its own; at the end it is back where it was, as it is then."""
    folder.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={_ROOMY},mode=700", "tmpfs", str(folder))
    try:
        shutil.copytree(data, folder / "data")
        yield Disk(folder)
        shutil.rmtree(data)
        shutil.copytree(folder / "data", data)
    finally:
        _run("umount", str(folder))
        folder.rmdir()


class Disk:
    """A file system in memory.

    Attributes:
        data: the data directory there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.data = folder / "data"

    def fill(self, left: int) -> None:
        """Leave so many bytes free, about."""
        for more in range(0, 256 << 20, 1 << 20):
            used = shutil.disk_usage(self._folder).used
            remount = ["mount", "-o", f"remount,size={used + left + more}", str(self._folder)]
            # What has been written since may be more than that.
            if subprocess.run(remount, capture_output=True, timeout=60, check=False).returncode == 0:
                return
        raise OSError("files grow faster than a disk can be made small")

    def make_room(self) -> None:
        """Be roomy again."""
        _run("mount", "-o", f"remount,size={_ROOMY}", str(self._folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)
