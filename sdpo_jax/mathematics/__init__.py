"""Compares answers as mathematics; runs in the sandbox, without the other packages."""
