"""The process that runs untrusted programs; it gets these files as source text."""
