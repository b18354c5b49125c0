"""Tokens and quotas."""
