"""Commands of `hadakv`. Each module imports what it needs only when a command runs, so that `--help` stays fast."""
