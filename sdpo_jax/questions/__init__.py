"""Questions: where they come from, how they are converted, and in which order."""
