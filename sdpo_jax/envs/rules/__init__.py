"""The rules task: an answer must satisfy the rule in its question's row."""
