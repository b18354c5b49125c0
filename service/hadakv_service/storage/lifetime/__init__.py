"""Lifetime of sessions: the clock that ages them, and the log of those deleted to make space."""
