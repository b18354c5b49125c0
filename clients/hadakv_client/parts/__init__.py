"""Appends and reads that are too large for one request, in parts."""
