"""Answers that keep a rule of the row."""
