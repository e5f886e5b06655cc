"""Sokoban: push the one box onto the goal (see grid_game.py).

As in ERL (arXiv:2602.13949, App. C): an empty room, 6 to 8 cells wide including its
walls, with player, box and goal anywhere. The player is A, the box B, the goal C, floor
D, a wall E; a is the player on the goal, b the box on the goal.
"""

import dataclasses
import itertools
import random
from typing import ClassVar

from sdpo_jax.envs.games import grid_game
from sdpo_jax.envs.games.grid_game import Cell

_SIZES = (6, 8)
# The player's cell, then the box's.
Place = tuple[Cell, Cell]


@dataclasses.dataclass(frozen=True)
class Room:
    """A room; its place is the cell of the player and the cell of the box."""

    size: int
    start: Place
    goal: Cell
    blocked: ClassVar[str] = (
        "A move into a wall, or of a box that a wall stops, has no effect."
    )

    def after(self, place: Place, move: str) -> Place:
        """The next place: the player moves by one cell and pushes the box if there."""
        player, box = place
        player = grid_game.neighbour(player, move)
        if player == box:
            box = grid_game.neighbour(box, move)
        return place if self._is_wall(player) or self._is_wall(box) else (player, box)

    def least(self, place: Place) -> int:
        """The player's way to a cell next to the box, plus the box's to the goal."""
        player, box = place
        if box == self.goal:
            return 0
        return grid_game.distance(player, box) - 1 + grid_game.distance(box, self.goal)

    def lost(self, place: Place) -> str:
        """Always empty: a box stuck in a corner does not end the game early."""
        return ""

    def render(self, place: Place) -> str:
        """The board, walls included."""
        cells = itertools.product(range(self.size), repeat=2)
        symbols = {cell: "E" for cell in cells if self._is_wall(cell)}
        player, box = place
        symbols[self.goal] = "C"
        symbols[box] = "b" if box == self.goal else "B"
        symbols[player] = "a" if player == self.goal else "A"
        return grid_game.board(self.size, symbols, "D")

    def _is_wall(self, cell: Cell) -> bool:
        last = self.size - 1
        return not (0 < cell[0] < last and 0 < cell[1] < last)


def draw(rng: random.Random) -> Room:
    """A random room whose box can be pushed onto the goal in MAX_MOVES."""
    size = rng.randint(*_SIZES)
    cells = list(itertools.product(range(1, size - 1), repeat=2))
    while True:
        player, box, goal = rng.sample(cells, 3)
        room = Room(size, (player, box), goal)
        if grid_game.shortest(room):
            return room


TASK = grid_game.one_act_task("sokoban", draw)
