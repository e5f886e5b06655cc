"""Games on a grid whose symbols are not explained (ERL, arXiv:2602.13949, App. C).

The policy sees a board of letters and the names of four moves, but no rules. It has at
most eight moves; a win scores 1, all else 0, and the feedback says how the game ended.
The moves are read from the last pair of triple backticks: Up, Down, Left or Right in
any case. `acts="many"` is ERL's protocol, one move per response and the board after
each; `acts="one"` reads the moves of a complete game from one response.

The prompts are this project's own. ERL's code also reads moves by number, and its
boards may need nine moves; here every board can be won in eight.
"""

import collections
import random
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol

from sdpo_jax.config import SPLITS
from sdpo_jax.envs import feedback_text, task
from sdpo_jax.envs.base import Verdict
from sdpo_jax.envs.single_turn import Listed, on_answer, unreadable
from sdpo_jax.questions import seeds
from sdpo_jax.questions.question import Question

Cell = tuple[int, int]

MOVES = {"Up": (-1, 0), "Down": (1, 0), "Left": (0, -1), "Right": (0, 1)}
MAX_MOVES = 8
SYSTEM = (
    "You play a game on a grid. What its symbols mean and what its rules are is for "
    "you to find out. The moves are Up, Down, Left and Right. First think about what "
    "the board shows and what each move may lead to. "
)
INSTRUCTION = {
    "one": "Then end with all your moves, in order, in triple backticks, as in "
    f"```Up Left Left```. At most {MAX_MOVES} moves are made.",
    "many": "Then end with your next move alone in triple backticks, as in ```Up```. "
    f"You see the board after each of at most {MAX_MOVES} moves.",
}
INCORRECT_FORMAT = {
    "one": "Incorrect Format: End with your moves, and nothing else, in triple "
    "backticks, as in ```Up Left Left```.",
    "many": "Incorrect Format: End with one move, and nothing else, in triple "
    "backticks, as in ```Up```.",
}


class Game(Protocol):
    """A board and its rules; a place is the position of everything that moves.

    Attributes:
      start: the first place.
      blocked: one sentence for the feedback that says which moves have no effect.
    """

    start: Hashable
    blocked: str

    def after(self, place: Hashable, move: str) -> Hashable:
        """The place after a move; the same place if the move has no effect."""

    def least(self, place: Hashable) -> int:
        """A lower bound on the moves still needed to win; 0 only at a win."""

    def lost(self, place: Hashable) -> str:
        """How the game is lost at this place; empty if it continues."""

    def render(self, place: Hashable) -> str:
        """The board as the policy sees it."""


def environment(
    name: str,
    sources: Mapping[str, str],
    draw: Callable[[random.Random], Game],
    acts: str,
) -> Listed:
    """An environment of games drawn from seeds.

    Args:
      name: prefix of the uids; the uid determines the game.
      sources: see `seeds.load_splits`.
      draw: draws a game that can be won in MAX_MOVES.
      acts: "one" or "many".

    Raises:
      ValueError: see `seeds.load_splits`.
    """

    def question(seed: int) -> Question:
        uid = f"{name}-{seed}"
        game = draw(random.Random(uid))
        prompt = f"The board:\n{game.render(game.start)}"
        return Question(uid, prompt, SYSTEM + INSTRUCTION[acts], {"game": game})

    start = lambda question: GridGameEpisode(question.data["game"], acts)
    return Listed(seeds.load_splits(sources, question), start)


def one_act_task(name: str, draw: Callable[[random.Random], Game]) -> task.Task:
    """The task of games whose moves are all in one response; see `environment`."""
    sources = lambda env: {split: env[split] for split in SPLITS}
    return task.Task(lambda env: environment(name, sources(env), draw, "one"))


def neighbour(cell: Cell, move: str) -> Cell:
    """The cell next to `cell` in the direction of a move."""
    return cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]


def distance(start: Cell, end: Cell) -> int:
    """Moves from one cell to another if nothing is in the way."""
    return abs(start[0] - end[0]) + abs(start[1] - end[1])


def board(size: int, symbols: Mapping[Cell, str], otherwise: str) -> str:
    """A square of symbols, a row per line."""
    cell = lambda row, column: symbols.get((row, column), otherwise)
    rows = ([cell(row, column) for column in range(size)] for row in range(size))
    return "\n".join(map(" ".join, rows))


def shortest(game: Game) -> list[str] | None:
    """The shortest moves that win; None if they are more than `MAX_MOVES`."""
    moves_to, waiting = {game.start: []}, collections.deque([game.start])
    while waiting:
        place = waiting.popleft()
        if not (least := game.least(place)):
            return moves_to[place]
        if len(moves_to[place]) + least > MAX_MOVES or game.lost(place):
            continue
        for move in MOVES:
            after = game.after(place, move)
            if after not in moves_to:
                moves_to[after] = [*moves_to[place], move]
                waiting.append(after)
    return None


def read(answer: str) -> list[str] | None:
    """The moves in the last pair of triple backticks; None if it holds other words."""
    fenced = answer.split("```")[1:-1:2]
    words = fenced[-1].replace(",", " ").replace("->", " ").split() if fenced else []
    moves = [word.capitalize() for word in words]
    return moves if moves and MOVES.keys() >= set(moves) else None


class GridGameEpisode:
    """One game, played in one act or in one act per move."""

    def __init__(self, game: Game, acts: str):
        self._game = game
        self._acts = acts
        self._place = game.start
        # Each move, None if it could not be read, and whether it had an effect.
        self._history: list[tuple[str | None, bool]] = []

    def act(self, response: str, truncated: bool) -> Verdict | str:
        """Make the moves in a response's answer; a verdict if they end the game."""
        return on_answer(self._act, response, truncated)

    def _act(self, answer: str, truncated: bool) -> Verdict | str:
        moves = read(answer)
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
        """Use up one move; a verdict if it ends the game."""
        before = self._place
        if move:
            self._place = self._game.after(before, move)
        self._history.append((move, self._place != before))
        if not self._game.least(self._place):
            return Verdict(1.0, "Accepted", measurements=self._measurements())
        if reason := self._game.lost(self._place):
            return self._not_won("Lost", reason)
        if len(self._history) == MAX_MOVES:
            reason = f"{MAX_MOVES} moves were made, which is all there are; not won."
            return self._not_won("Move Limit", reason)
        return None

    def _observation(self, truncated: bool) -> str:
        """The next user turn."""
        move, had_effect = self._history[-1]
        lines = [f"The board after {len(self._history)} of {MAX_MOVES} moves:"]
        lines += [self._game.render(self._place), "The game is not won yet."]
        if move is None:
            lines += [
                feedback_text.TRUNCATED if truncated else INCORRECT_FORMAT["many"]
            ]
        elif not had_effect:
            lines += [f"Your last move had no effect. {self._game.blocked}"]
        return "\n".join([*lines, "Give your next move."])

    def _not_won(self, outcome: str, reason: str) -> Verdict:
        """The verdict on a game that ended without a win, with its moves."""
        named = [
            f"{move or 'unreadable'}{'' if had_effect else ' (no effect)'}"
            for move, had_effect in self._history
        ]
        lines = [reason, f"Moves made: {', '.join(named)}."]
        if any(move and not had_effect for move, had_effect in self._history):
            lines.append(self._game.blocked)
        lines += ["The board at the end:", self._game.render(self._place)]
        feedback = feedback_text.feedback(lines)
        return Verdict(0.0, outcome, feedback, self._measurements())

    def _measurements(self) -> dict[str, float]:
        readable = sum(move is not None for move, _ in self._history)
        effective = sum(had_effect for _, had_effect in self._history)
        total = len(self._history)
        return {"format": readable / total, "moves_with_effect": effective / total}
