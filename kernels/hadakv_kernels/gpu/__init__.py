"""The GPU backend, on MLX: Metal on a Mac, CUDA on Linux. Importing it requires MLX."""

from hadakv_kernels.gpu.backend import GpuBackend, is_available

__all__ = ["GpuBackend", "is_available"]
