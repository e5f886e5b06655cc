"""The process that runs untrusted programs; its files are sent to it as text."""
