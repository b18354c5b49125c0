"""Connections: the only package that imports uvicorn and httptools."""
