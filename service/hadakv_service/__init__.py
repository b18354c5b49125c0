"""The service: sessions of compressed KV pages behind HTTP."""

from importlib.metadata import version

__version__ = version("hadakv")
