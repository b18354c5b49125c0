"""Checkpoints: sessions that changed are written to disk in the background."""
