"""Memory of a process, as the system reports it."""

from pathlib import Path
from subprocess import check_output


def peak_nbytes(pid: int) -> int:
    """Return the peak memory of a process, bytes (Linux); elsewhere its current memory."""
    return _nbytes(pid, "VmHWM")


def resident_nbytes(pid: int) -> int:
    """Return the resident memory of a process, bytes."""
    return _nbytes(pid, "VmRSS")


def _nbytes(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        line = next(line for line in status.read_text("ascii").splitlines() if line.startswith(name))
        return int(line.split()[1]) << 10
    return int(check_output(["ps", "-o", "rss=", "-p", str(pid)])) << 10
