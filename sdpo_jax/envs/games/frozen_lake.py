"""Frozen lake: walk over ice to the goal, without falling in a hole (see grid_game.py).

As in ERL (arXiv:2602.13949, App. C): boards are 2 to 9 cells wide, each cell is ice
with a probability drawn from 0.6 to 0.85, ice is not slippery, and start and goal are
anywhere. The player is A, the goal B, a hole C, ice D; X is the player in a hole.
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
        row, column = grid_game.neighbour(place, move)
        inside = 0 <= row < self.size and 0 <= column < self.size
        return (row, column) if inside else place

    def least(self, place: Cell) -> int:
        """The distance to the goal if there were no holes."""
        return grid_game.distance(place, self.goal)

    def lost(self, place: Cell) -> str:
        """The hole that the player fell into; empty if in none."""
        if place not in self.holes:
            return ""
        row, column = place
        return f"You fell into a hole, at row {row + 1} and column {column + 1}."

    def render(self, place: Cell) -> str:
        """The board; the player's symbol covers that of its cell."""
        player = "X" if place in self.holes else "A"
        symbols = dict.fromkeys(self.holes, "C") | {self.goal: "B", place: player}
        return grid_game.board(self.size, symbols, "D")


def draw(rng: random.Random) -> Lake:
    """A random lake whose goal can be reached in MAX_MOVES."""
    size, ice = rng.randint(*_SIZES), rng.uniform(*_ICE)
    cells = list(itertools.product(range(size), repeat=2))
    while True:
        start, goal = rng.sample(cells, 2)
        holes = {cell for cell in cells if rng.random() >= ice} - {start, goal}
        lake = Lake(size, frozenset(holes), start, goal)
        if grid_game.shortest(lake):
            return lake


TASK = grid_game.one_act_task("frozen_lake", draw)
