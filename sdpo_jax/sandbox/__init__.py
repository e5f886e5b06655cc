"""Runs programs that nobody vouches for. Knows no task."""
