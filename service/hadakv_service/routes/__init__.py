"""The calls, one module for each kind."""
