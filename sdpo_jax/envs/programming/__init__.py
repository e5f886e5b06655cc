"""Programs, graded by hidden tests."""
