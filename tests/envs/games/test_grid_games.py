"""Frozen lake and Sokoban: what their boards show is what their moves do."""

import collections
import random

import pytest

from sdpo_jax import config, envs
from sdpo_jax.envs import feedback_text
from sdpo_jax.envs.base import Verdict
from sdpo_jax.envs.dialogue import Turn, play
from sdpo_jax.envs.games import frozen_lake, grid_game, sokoban
from sdpo_jax.envs.games.frozen_lake import Lake
from sdpo_jax.envs.games.sokoban import Room
from sdpo_jax.questions.question import Question

GAMES = {"frozen_lake": frozen_lake, "sokoban": sokoban}
STEPS = {"Up": (-1, 0), "Down": (1, 0), "Left": (0, -1), "Right": (0, 1)}

# A B C      the way over the top leads through a hole
# D D D
LAKE = Lake(3, frozenset([(0, 1)]), (0, 0), (0, 2))
# E E E E E E
# E A D D D E
# E D B D C E
ROOM = Room(6, ((1, 1), (2, 2)), (2, 4))


def drawn(name, number):
    """The games of so many seeds."""
    return [GAMES[name].draw(random.Random(f"test {n}")) for n in range(number)]


def attempt(game, acts="one"):
    return grid_game.GridGameEpisode(game, acts)


def plan(moves, game=LAKE, truncated=False):
    """The verdict on these moves in one response."""
    return attempt(game).act(f"So: ```{moves}```", truncated)


# The same games once more, from nothing but the board that the policy sees.


def parse(board):
    """Cell -> symbol."""
    lines = [line.split(" ") for line in board.split("\n")]
    return {(r, c): s for r, line in enumerate(lines) for c, s in enumerate(line)}


def where(cells, symbols):
    """The only cell that shows one of these symbols."""
    (found,) = [cell for cell, symbol in cells.items() if symbol in symbols]
    return found


def beside(cell, move):
    return cell[0] + STEPS[move][0], cell[1] + STEPS[move][1]


def lake_after(cells, player, move):
    to = beside(player, move)
    return to if to in cells else player


def room_after(cells, place, move):
    player, box = place
    to = beside(player, move)
    beyond = beside(to, move)
    if cells[to] == "E" or (to == box and cells[beyond] == "E"):
        return place
    return (to, beyond if to == box else box)


def simulate(name, board, moves):
    """Whether these moves win, by the text of the board alone."""
    cells = parse(board)
    if name == "frozen_lake":
        player = where(cells, "A")
        for move in moves[:8]:
            player = lake_after(cells, player, move)
            if cells[player] in "BC":
                return cells[player] == "B"
        return False
    place, goal = (where(cells, "Aa"), where(cells, "Bb")), where(cells, "Cab")
    for move in moves[:8]:
        place = room_after(cells, place, move)
        if place[1] == goal:
            return True
    return False


@pytest.mark.parametrize("name", GAMES)
def test_moves_do_what_the_board_shows(name):
    rng, won = random.Random(0), 0
    for game in drawn(name, 200):
        board = game.render(game.start)
        solution = grid_game.shortest(game)
        for length in range(1, 11):
            moves = rng.choices(list(STEPS), k=length)
            if length % 2:
                # Near a solution, so that some of them win and others nearly do.
                moves = [*solution, *moves][: length + 3]
                moves[rng.randrange(len(moves))] = rng.choice(list(STEPS))

            verdict = plan(" ".join(moves), game)

            assert verdict.score == simulate(name, board, moves), (board, moves)
            won += verdict.score
    assert 100 < won < 1900


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("acts", ["one", "many"])
def test_every_game_can_be_won_in_time(name, acts):
    for game in drawn(name, 200):
        moves = grid_game.shortest(game)
        assert 1 <= len(moves) <= 8
        episode = attempt(game, acts)
        if acts == "one":
            assert episode.act(f"```{' '.join(moves)}```", False).score == 1
            continue
        for move in moves[:-1]:
            assert isinstance(episode.act(f"```{move}```", False), str)
        assert episode.act(f"```{moves[-1]}```", False) == Verdict(
            1.0, "Accepted", "", {"format": 1.0, "moves_with_effect": 1.0}
        )


def any_board(name, rng):
    """A board that nobody promises to be winnable."""
    if name == "frozen_lake":
        size = rng.randint(2, 7)
        cells = [(r, c) for r in range(size) for c in range(size)]
        start, goal = rng.sample(cells, 2)
        holes = set(rng.sample(cells, len(cells) // 3)) - {start, goal}
        return Lake(size, frozenset(holes), start, goal), lambda place: place == goal
    size = rng.randint(5, 8)
    cells = [(r, c) for r in range(1, size - 1) for c in range(1, size - 1)]
    player, box, goal = rng.sample(cells, 3)
    return Room(size, (player, box), goal), lambda place: place[1] == goal


@pytest.mark.parametrize("name", GAMES)
def test_shortest_solution_is_that_of_an_exhaustive_search(name):
    rng, fewest = random.Random(0), collections.Counter()
    for _ in range(300):
        game, is_won = any_board(name, rng)
        reached, expected = {game.start}, None
        for number in range(1, 9):
            going = [place for place in reached if not game.lost(place)]
            reached |= {game.after(place, move) for place in going for move in STEPS}
            if any(map(is_won, reached)):
                expected = number
                break

        found = grid_game.shortest(game)

        assert (found and len(found)) == expected
        fewest[expected] += 1
    assert fewest[None] > 30 and all(fewest[number] for number in range(1, 9))


def test_game_that_cannot_be_won_in_time_has_no_solution():
    wall = frozenset((row, 1) for row in range(9))
    assert grid_game.shortest(Lake(9, wall, (0, 0), (0, 2))) is None
    # Around the wall takes twelve moves.
    assert grid_game.shortest(Lake(9, wall - {(5, 1)}, (0, 0), (0, 2))) is None
    assert len(grid_game.shortest(Lake(9, wall - {(3, 1)}, (0, 0), (0, 2)))) == 8
    # The box stands in a corner.
    assert grid_game.shortest(Room(6, ((3, 3), (1, 1)), (2, 2))) is None


@pytest.mark.parametrize("name, sizes", [("frozen_lake", (2, 9)), ("sokoban", (6, 8))])
def test_boards_are_as_large_as_in_the_paper(name, sizes):
    found = collections.Counter(game.size for game in drawn(name, 300))

    assert (min(found), max(found)) == sizes
    assert len(found) == sizes[1] - sizes[0] + 1
    for game in drawn(name, 100):
        lines = game.render(game.start).split("\n")
        assert [len(line.split(" ")) for line in lines] == [game.size] * game.size


def test_ice_is_as_frequent_as_in_the_paper():
    holes = [len(lake.holes) / lake.size**2 for lake in drawn("frozen_lake", 500)]

    for lake in drawn("frozen_lake", 500):
        assert not {lake.start, lake.goal} & lake.holes
    # Boards that cannot be crossed are drawn again, which takes some holes away.
    assert 0.1 < sum(holes) / len(holes) < 0.3
    assert max(holes) > 0.35


@pytest.mark.parametrize(
    "name, board",
    [
        ("frozen_lake", "D D C C\nD D D D\nD C D A\nC D D B"),
        (
            "sokoban",
            "E E E E E E E\nE D D D D D E\nE A D D D D E\nE D D D D D E\n"
            "E B D D D D E\nE C D D D D E\nE E E E E E E",
        ),
    ],
)
def test_seed_alone_decides_the_game(name, board):
    sources = {"train": "seeds:5-9", "validation": "seeds:20-20"}
    sources["heldout"] = "seeds:30-30"
    environment = grid_game.environment(name, sources, GAMES[name].draw, "one")

    (question,) = [q for q in environment.questions("train") if q.uid == f"{name}-7"]

    assert question.prompt == f"The board:\n{board}"
    # No rule, and no word of what the game is.
    shown = (question.system + question.prompt).lower()
    told = ("lake", "hole", "ice", "goal", "box", "push", "wall", "player", "sokoban")
    assert not [word for word in told if word in shown.split()]


@pytest.mark.parametrize(
    "moves",
    [
        "Right Right",
        "Down Right Right",
        "Down Right Up Right",
        "Left Right Right",
        "Down Down Right Right Up Down Down Up Up",
    ],
)
def test_way_that_does_not_end_at_the_goal_scores_nothing(moves):
    assert plan(moves).score == 0


@pytest.mark.parametrize(
    "moves",
    [
        "Down Right Right Up",
        "down, right, RIGHT, up",
        "\nDown -> Right -> Right -> Up\n",
        "Down Right Right Up Left Left Left Left Left",
        "Left Up Down Down Up Right Right Up",
    ],
)
def test_way_that_ends_at_the_goal_wins(moves):
    assert plan(moves) == Verdict(1.0, "Accepted", "", plan(moves).measurements)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Down Right Right Up",
        "`Down Right Right Up`",
        "```Down Right Right Up",
        "``````",
        "``` ```",
        "```text\nDown Right Right Up```",
        "```Go Down Right Right Up```",
        "```DownRightRightUp```",
        "```D R R U```",
        "```2 3 3 4```",
        "```Down Right Right Up``` or ```else```",
    ],
)
@pytest.mark.parametrize("truncated", [False, True])
def test_moves_that_cannot_be_read_are_not_made(response, truncated):
    verdict = attempt(LAKE).act(response, truncated)

    told = feedback_text.TRUNCATED if truncated else grid_game.INCORRECT_FORMAT["one"]
    outcome = "Truncated" if truncated else "Incorrect Format"
    assert verdict == Verdict(0.0, outcome, told, {"format": 0.0})


def test_the_last_fence_counts():
    right, wrong = "```Down Right Right Up```", "```Right```"

    assert attempt(LAKE).act(f"{wrong} no, {right}", False).score == 1
    assert attempt(LAKE).act(f"{right} no, {wrong}", False).score == 0
    # The last one that closes.
    assert attempt(LAKE).act(f"{right} and ```Down", True).score == 1


def test_feedback_says_where_the_player_fell():
    verdict = plan("Up Right Right")

    assert verdict == Verdict(
        0.0,
        "Lost",
        "You fell into a hole, at row 1 and column 2.\n"
        "Moves made: Up (no effect), Right.\n"
        "A move off the board has no effect.\n"
        "The board at the end:\n"
        "D X B\nD D D\nD D D",
        {"format": 1.0, "moves_with_effect": 0.5},
    )


def test_feedback_says_that_the_moves_were_too_few():
    assert plan("Down Right") == Verdict(
        0.0,
        "Unfinished",
        "The moves ended before the game was won.\nMoves made: Down, Right.\n"
        "The board at the end:\nD C B\nD A D\nD D D",
        {"format": 1.0, "moves_with_effect": 1.0},
    )


def test_eight_moves_are_all_there_are():
    verdict = plan("Down Up " * 4 + "Down Right Right Up")

    assert (verdict.score, verdict.outcome) == (0.0, "Move Limit")
    assert verdict.feedback.startswith("8 moves were made, which is all there are")
    assert verdict.feedback.count("Down") == 4


@pytest.mark.parametrize(
    "moves, score",
    [
        ("Down Right Right", 1),
        # The player at the goal, the box not.
        ("Right Right Right Down", 0),
        ("Down Right", 0),
        # A box is not pulled.
        ("Right Right Down Right", 0),
        # Nor pushed sideways from above.
        ("Right Down Down", 0),
    ],
)
def test_box_is_pushed_onto_the_goal(moves, score):
    assert plan(moves, ROOM).score == score


def test_box_that_a_wall_stops_stays():
    verdict = plan("Right Down Down Down", ROOM)

    assert verdict.feedback == (
        "The moves ended before the game was won.\n"
        "Moves made: Right, Down, Down, Down (no effect).\n"
        "A move into a wall, or of a box that a wall stops, has no effect.\n"
        "The board at the end:\n"
        "E E E E E E\nE D D D D E\nE D D D C E\nE D A D D E\nE D B D D E\nE E E E E E"
    )


def test_symbols_tell_what_stands_on_the_goal():
    assert "a" in ROOM.render(((2, 4), (2, 2)))
    assert "b" in ROOM.render(((2, 3), (2, 4)))


# One act per move.


def test_board_comes_back_after_each_move():
    episode = attempt(LAKE, "many")

    assert episode.act("```Down```", False) == (
        "The board after 1 of 8 moves:\nD C B\nA D D\nD D D\n"
        "The game is not won yet.\nGive your next move."
    )
    assert episode.act("```Left```", False) == (
        "The board after 2 of 8 moves:\nD C B\nA D D\nD D D\n"
        "The game is not won yet.\n"
        "Your last move had no effect. A move off the board has no effect.\n"
        "Give your next move."
    )


@pytest.mark.parametrize("response", ["Down", "```Down Right```", "```Jump```", ""])
@pytest.mark.parametrize("truncated", [False, True])
def test_unreadable_move_is_spent_and_told(response, truncated):
    episode = attempt(LAKE, "many")
    told = feedback_text.TRUNCATED if truncated else grid_game.INCORRECT_FORMAT["many"]

    for number in range(1, 8):
        observation = episode.act(response, truncated)
        assert observation.startswith(f"The board after {number} of 8 moves:\nA C B\n")
        assert told in observation
    verdict = episode.act(response, truncated)

    assert (verdict.score, verdict.outcome) == (0.0, "Move Limit")
    assert verdict.measurements == {"format": 0.0, "moves_with_effect": 0.0}
    assert verdict.feedback.count("unreadable (no effect)") == 8


def test_game_is_over_in_a_hole():
    verdict = attempt(LAKE, "many").act("```Right```", False)

    assert (verdict.score, verdict.outcome) == (0.0, "Lost")


def test_attempts_at_one_game_do_not_meet():
    question = Question("q", "?", data={"game": LAKE})
    environment = move_by_move("frozen_lake")
    first, second = environment.start(question), environment.start(question)
    for move in ("Down", "Right", "Right"):
        first.act(f"```{move}```", False)

    assert isinstance(second.act("```Up```", False), str)
    assert first.act("```Up```", False).score == 1


# Whole episodes.


SOURCES = {
    "train": "seeds:0-3",
    "validation": "seeds:100-103",
    "heldout": "seeds:200-203",
}


def settings(name, **sources):
    c = config.default()
    c.model.path, c.env.name = "somewhere", name
    c.env.update(SOURCES | sources)
    return c


def move_by_move(name):
    """Games in which a response holds one move."""
    return grid_game.environment(name, SOURCES, GAMES[name].draw, "many")


def solver(question):
    """A policy that plays the solution, move by move."""
    moves = iter(grid_game.shortest(question.data["game"]))
    return lambda turns: (f"I think ```{next(moves)}```", False)


@pytest.mark.parametrize("name", GAMES)
def test_driver_plays_to_the_verdict(name):
    environment = move_by_move(name)
    for question in environment.questions("heldout"):
        turns, verdict = play(environment, question, solver(question), 8)

        fewest = len(grid_game.shortest(question.data["game"]))
        assert verdict.score == 1
        roles = ["system", "user"] + ["assistant", "user"] * fewest
        assert [turn.role for turn in turns] == roles[:-1]
        assert turns[0].text == question.system and turns[1].text == question.prompt
        assert all("The board after" in t.text for t in turns[3:] if t.role == "user")
    environment.close()


def test_driver_stops_without_a_verdict_after_so_many_acts():
    environment = move_by_move("sokoban")
    (question, *_) = environment.questions("train")
    seen = []

    def still(turns):
        seen.append(len(turns))
        return "no move", True

    turns, verdict = play(environment, question, still, 3)

    assert verdict is None
    assert seen == [2, 4, 6] and len(turns) == 8
    assert turns[2] == Turn("assistant", "no move")
    assert feedback_text.TRUNCATED in turns[-1].text


def test_driver_plays_one_act():
    environment = envs.from_config(settings("frozen_lake"))
    (question, *_) = environment.questions("train")

    turns, verdict = play(environment, question, lambda turns: ("hm", False), 8)

    assert (len(turns), verdict.outcome) == (3, "Incorrect Format")


def test_seeds_are_all_that_games_are_made_of():
    with pytest.raises(ValueError, match="env.validation='share:0.1': expected seeds:"):
        envs.from_config(settings("sokoban", validation="share:0.1"))
    with pytest.raises(ValueError, match="env.train is empty: give .* seeds"):
        envs.from_config(settings("sokoban", train=""))
    config.validate(settings("sokoban"))
