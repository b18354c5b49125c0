"""Choice of the backend: by name, or the best one that works on this machine."""

import logging

from hadakv_kernels.backend import GPUS, Backend
from hadakv_kernels.errors import BackendUnavailable

_log = logging.getLogger(__name__)


def open_backend(name: str = "auto", threads: int | None = None, gpu_min_rows: int | None = None) -> Backend:
    """Open the backend of that name, or the best one on this machine.

    Args:
        name: "metal", "cuda", "cpu", or "auto" for the first of them that works on this machine.
        threads: number of worker threads of the CPU engine; None uses every processor.
        gpu_min_rows: rows from which a GPU encodes and decodes, while the CPU does calls with fewer; None measures
            from how many on the GPU is faster.

    Raises:
        BackendUnavailable: the backend cannot run on this machine, or the name is unknown.
    """
    if name == "auto":
        return _open_best(threads, gpu_min_rows)
    from hadakv_kernels.cpu import CpuBackend

    if name == "cpu":
        return CpuBackend(threads)
    if name not in GPUS:
        raise BackendUnavailable(f"unknown backend {name!r}: choose one of {', '.join((*GPUS, 'cpu'))}")
    try:
        from hadakv_kernels.gpu import GpuBackend
    except ImportError as error:
        raise BackendUnavailable(f"the {name} backend needs MLX: {error}") from error
    backend = GpuBackend(name, CpuBackend(threads))
    backend.check()
    backend.min_rows = backend.measure_min_rows() if gpu_min_rows is None else gpu_min_rows
    return backend


def _open_best(threads: int | None, gpu_min_rows: int | None) -> Backend:
    for name in GPUS:
        if not _is_available(name):
            continue
        try:
            return open_backend(name, threads, gpu_min_rows)
        except BackendUnavailable as error:
            _log.warning("%s; using the CPU instead", error)
    return open_backend("cpu", threads)


def _is_available(gpu: str) -> bool:
    try:
        from hadakv_kernels.gpu import is_available
    except ImportError:
        return False
    return is_available(gpu)
