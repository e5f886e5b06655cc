"""Frozen lake: walk over ice to the goal, and into no hole (see grid_game.py).

As in ERL (arXiv:2602.13949, App. C): boards 2 to 9 cells wide, each cell ice with a
probability drawn between .6 and .85, ice that is not slippery, start and goal anywhere.
The player is A, the goal B, a hole C, ice D; at the end X is the player in a hole.
"""

import dataclasses
import itertools
import random
from typing import ClassVar

from sdpo_jax.envs.games import grid_game
from sdpo_jax.envs.games.grid_game import Cell

_SIZES = (2, 9)
_ICE = (0.6, 0.85)


@dataclasses.dataclass(frozen=True)
class Lake:
    """A board; its place is the player's cell."""

    size: int
    holes: frozenset[Cell]
    start: Cell
    goal: Cell
    blocked: ClassVar[str] = "A move off the board has no effect."

    def after(self, place: Cell, move: str) -> Cell:
        """The next cell; the player stays at the edge."""
        row, column = grid_game.beside(place, move)
        inside = 0 <= row < self.size and 0 <= column < self.size
        return (row, column) if inside else place

    def least(self, place: Cell) -> int:
        """The way of the player over ice alone."""
        return grid_game.distance(place, self.goal)

    def lost(self, place: Cell) -> str:
        """Where the player fell in."""
        if place not in self.holes:
            return ""
        row, column = place
        return f"You fell into a hole, at row {row + 1} and column {column + 1}."

    def render(self, place: Cell) -> str:
        """The board; the player hides what is below."""
        player = "X" if place in self.holes else "A"
        symbols = dict.fromkeys(self.holes, "C") | {self.goal: "B", place: player}
        return grid_game.board(self.size, symbols, "D")


def draw(rng: random.Random) -> Lake:
    """A lake that can be crossed in time."""
    size, ice = rng.randint(*_SIZES), rng.uniform(*_ICE)
    cells = list(itertools.product(range(size), repeat=2))
    while True:
        start, goal = rng.sample(cells, 2)
        holes = {cell for cell in cells if rng.random() >= ice} - {start, goal}
        lake = Lake(size, frozenset(holes), start, goal)
        if grid_game.shortest(lake):
            return lake


TASK = grid_game.planned("frozen_lake", draw)
