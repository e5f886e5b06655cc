"""The mathematics task: one answer, compared as mathematics."""
