"""Immutable values: sessions, layer runs, pages."""
