"""Boards that are played by one plan of moves."""
