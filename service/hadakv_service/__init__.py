"""HTTP service that stores sessions of compressed KV pages."""

from importlib.metadata import version

__version__ = version("hadakv")
