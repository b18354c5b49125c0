"""Sessions in memory and on disk."""
