"""What is asked: rows of files and datasets as questions, and in which order."""
