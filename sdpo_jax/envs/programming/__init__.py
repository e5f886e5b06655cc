"""The programming task: programs, graded by hidden tests."""
