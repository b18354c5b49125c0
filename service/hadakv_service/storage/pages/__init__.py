"""Pages that responses hold, and pages that are corrupt."""
