"""Games on a grid of symbols that nobody explains (ERL, arXiv:2602.13949, App. C).

The policy sees a board of letters and the names of four moves, but no rule. It moves at
most eight times; a win scores 1, all else 0, and the feedback says how the game ended.
The moves stand in the last pair of triple backticks, Up, Down, Left or Right in any
case. `acts="many"` is ERL's way, one move per response and the board after each;
`acts="one"` takes the moves of a whole game from one response.

The wording is this project's own. ERL's code also reads moves by number, and may ask
for nine moves; here every board can be won in eight.
"""

import collections
import random
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol

from sdpo_jax.config import SPLITS
from sdpo_jax.envs import feedback_text, task
from sdpo_jax.envs.base import Verdict
from sdpo_jax.envs.single_turn import Listed, unreadable
from sdpo_jax.questions import seeds
from sdpo_jax.questions.question import Question

Cell = tuple[int, int]

MOVES = {"Up": (-1, 0), "Down": (1, 0), "Left": (0, -1), "Right": (0, 1)}
MOST_MOVES = 8
SYSTEM = (
    "You play a game on a grid. What its symbols mean and what its rules are is for "
    "you to find out. The moves are Up, Down, Left and Right. First think about what "
    "the board shows and what each move may lead to. "
)
ASKED = {
    "one": "Then end with all your moves, in order, in triple backticks, as in "
    f"```Up Left Left```. At most {MOST_MOVES} moves are made.",
    "many": "Then end with your next move alone in triple backticks, as in ```Up```. "
    f"You see the board after each of at most {MOST_MOVES} moves.",
}
INCORRECT_FORMAT = {
    "one": "Incorrect Format: End with your moves, and nothing else, in triple "
    "backticks, as in ```Up Left Left```.",
    "many": "Incorrect Format: End with one move, and nothing else, in triple "
    "backticks, as in ```Up```.",
}


class Game(Protocol):
    """A board and its rules; a place says where everything is that moves.

    Attributes:
      start: the first place.
      blocked: the moves that have no effect, as one sentence.
    """

    start: Hashable
    blocked: str

    def after(self, place: Hashable, move: str) -> Hashable:
        """Where a move leads; the same place when it has no effect."""

    def least(self, place: Hashable) -> int:
        """At least so many moves are still needed to win; 0 at a win only."""

    def lost(self, place: Hashable) -> str:
        """How the game ends here without a win; empty when it goes on."""

    def render(self, place: Hashable) -> str:
        """The board as the policy sees it."""


def environment(
    name: str,
    sources: Mapping[str, str],
    draw: Callable[[random.Random], Game],
    acts: str,
) -> Listed:
    """An environment of games that seeds draw.

    Args:
      name: what uids begin with; with the seed it decides the game.
      sources: see `seeds.load_splits`.
      draw: a game that can be won in time.
      acts: "one" or "many".

    Raises:
      ValueError: see `seeds.load_splits`.
    """

    def question(seed: int) -> Question:
        uid = f"{name}-{seed}"
        game = draw(random.Random(uid))
        prompt = f"The board:\n{game.render(game.start)}"
        return Question(uid, prompt, SYSTEM + ASKED[acts], {"game": game})

    start = lambda question: GridGameEpisode(question.data["game"], acts)
    return Listed(seeds.load_splits(sources, question), start)


def planned(name: str, draw: Callable[[random.Random], Game]) -> task.Task:
    """The task of games that one response plans as a whole; see `environment`."""
    sources = lambda env: {split: env[split] for split in SPLITS}
    return task.Task(lambda env: environment(name, sources(env), draw, "one"))


def beside(cell: Cell, move: str) -> Cell:
    """The cell that a move leads to from another."""
    return cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]


def distance(one: Cell, other: Cell) -> int:
    """Moves from one cell to another where nothing is in the way."""
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def board(size: int, symbols: Mapping[Cell, str], otherwise: str) -> str:
    """A square of symbols, a row per line."""
    cell = lambda row, column: symbols.get((row, column), otherwise)
    rows = ([cell(row, column) for column in range(size)] for row in range(size))
    return "\n".join(map(" ".join, rows))


def shortest(game: Game) -> list[str] | None:
    """The fewest moves that win; None if there are more than `MOST_MOVES`."""
    found, waiting = {game.start: []}, collections.deque([game.start])
    while waiting:
        place = waiting.popleft()
        if not (least := game.least(place)):
            return found[place]
        if len(found[place]) + least > MOST_MOVES or game.lost(place):
            continue
        for move in MOVES:
            after = game.after(place, move)
            if after not in found:
                found[after] = [*found[place], move]
                waiting.append(after)
    return None


def read(response: str) -> list[str] | None:
    """The moves in the last pair of triple backticks; None if it holds other words."""
    fenced = response.split("```")[1:-1:2]
    words = fenced[-1].replace(",", " ").replace("->", " ").split() if fenced else []
    moves = [word.capitalize() for word in words]
    return moves if moves and MOVES.keys() >= set(moves) else None


class GridGameEpisode:
    """One game, played in one act or in one act per move."""

    def __init__(self, game: Game, acts: str):
        self._game = game
        self._acts = acts
        self._place = game.start
        # What was moved, None when that could not be read; and whether it had effect.
        self._made: list[tuple[str | None, bool]] = []

    def act(self, response: str, truncated: bool) -> Verdict | str:
        """Make the moves in `response`; the verdict at the end of the game."""
        moves = read(response)
        if self._acts == "many":
            move = moves[0] if moves and len(moves) == 1 else None
            return self._make(move) or self._observation(truncated)
        if not moves:
            return unreadable(INCORRECT_FORMAT["one"], truncated)
        for move in moves:
            if verdict := self._make(move):
                return verdict
        return self._not_won("Unfinished", "The moves ended before the game was won.")

    def _make(self, move: str | None) -> Verdict | None:
        """Spend one move; a verdict if that ends the game."""
        before = self._place
        if move:
            self._place = self._game.after(before, move)
        self._made.append((move, self._place != before))
        if not self._game.least(self._place):
            return Verdict(1.0, "Accepted", measurements=self._measurements())
        if how := self._game.lost(self._place):
            return self._not_won("Lost", how)
        if len(self._made) == MOST_MOVES:
            told = f"{MOST_MOVES} moves were made, which is all there are; not won."
            return self._not_won("Move Limit", told)
        return None

    def _observation(self, truncated: bool) -> str:
        """The next user turn."""
        move, had_effect = self._made[-1]
        told = [f"The board after {len(self._made)} of {MOST_MOVES} moves:"]
        told += [self._game.render(self._place), "The game is not won yet."]
        if move is None:
            told += [feedback_text.TRUNCATED if truncated else INCORRECT_FORMAT["many"]]
        elif not had_effect:
            told += [f"Your last move had no effect. {self._game.blocked}"]
        return "\n".join([*told, "Give your next move."])

    def _not_won(self, outcome: str, how: str) -> Verdict:
        """The verdict on a game that ended otherwise, with what was done in it."""
        named = [
            f"{move or 'unreadable'}{'' if had_effect else ' (no effect)'}"
            for move, had_effect in self._made
        ]
        told = [how, f"Moves made: {', '.join(named)}."]
        if any(move and not had_effect for move, had_effect in self._made):
            told.append(self._game.blocked)
        told += ["The board at the end:", self._game.render(self._place)]
        return Verdict(0.0, outcome, feedback_text.feedback(told), self._measurements())

    def _measurements(self) -> dict[str, float]:
        readable = sum(move is not None for move, _ in self._made)
        effective = sum(had_effect for _, had_effect in self._made)
        made = len(self._made)
        return {"format": readable / made, "moves_with_effect": effective / made}
