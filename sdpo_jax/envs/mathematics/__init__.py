"""One answer, compared as mathematics."""
