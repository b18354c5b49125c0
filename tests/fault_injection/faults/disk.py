"""Small disk for the data directory: a file system in memory that can be filled. Needs the right to mount."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_INSIDE = "HADAKV_FAULTS_NAMESPACE"
_LARGE_SIZE = "4g"


def enter_namespace() -> None:
    """Restart this program in a mount namespace of its own, if the system allows one."""
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
    """Return whether `small_disk` works here."""
    return _INSIDE in os.environ


@contextmanager
def small_disk(folder: Path, data: Path) -> Iterator["Disk"]:
    """Move the data directory to a disk of its own. Move it back at the end of the block."""
    folder.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={_LARGE_SIZE},mode=700", "tmpfs", str(folder))
    try:
        shutil.copytree(data, folder / "data")
        yield Disk(folder)
        shutil.rmtree(data)
        shutil.copytree(folder / "data", data)
    finally:
        _run("umount", str(folder))
        folder.rmdir()


class Disk:
    """File system in memory.

    Attributes:
        data: the data directory on it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.data = folder / "data"

    def fill(self, left: int) -> None:
        """Fill the disk until about `left` bytes are free."""
        for more in range(0, 256 << 20, 1 << 20):
            used = shutil.disk_usage(self._folder).used
            remount = ["mount", "-o", f"remount,size={used + left + more}", str(self._folder)]
            # The service may have written more since. Then the size is too small, and the next one is tried.
            if subprocess.run(remount, capture_output=True, timeout=60, check=False).returncode == 0:
                return
        raise OSError("the files grow faster than the disk can be made smaller")

    def free_space(self) -> None:
        """Give the disk its full size back."""
        _run("mount", "-o", f"remount,size={_LARGE_SIZE}", str(self._folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)
