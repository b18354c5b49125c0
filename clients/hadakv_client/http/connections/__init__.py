"""Connections of both clients. They survive forks, cancelled calls and interrupted calls."""
