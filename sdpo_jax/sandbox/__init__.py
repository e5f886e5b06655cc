"""Runs untrusted programs. Knows nothing of tasks."""
