"""Limits of a session's fields that other layers check, too."""

# About 31 years. A time that far ahead is still a valid date.
MAX_TTL_SECONDS = 1e9
