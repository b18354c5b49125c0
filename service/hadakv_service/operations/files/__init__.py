"""Sessions as files: export, import, and the two versions of the format."""
