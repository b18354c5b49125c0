"""The device thread and its queue of jobs."""
