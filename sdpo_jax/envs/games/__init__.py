"""Tasks that are games on a board, played by one plan of moves."""
