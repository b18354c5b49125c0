"""Command line `hadakv`: manage the sessions of a running service. It uses the public API of `hadakv_client` only."""
