"""The self-teacher's prompt: which solution and feedback it shows, and its templates.

The rules and templates are those of the SDPO paper (arXiv:2601.20802, Table 2) and of
its code; where the two differ, each is a named value. This file handles text only;
`feedback.py` truncates it to a number of tokens.
"""

import dataclasses
import random
from collections.abc import Sequence

from sdpo_jax import thinking

# Encloses the attempt where `reprompt.show_attempt` is set.
ATTEMPT_TEMPLATE = "\nYour earlier attempt:\n\n{attempt}"


@dataclasses.dataclass(frozen=True)
class Rules:
    """The fields of the config's `reprompt` subtree that this file reads.

    Args:
      demonstration_from: which attempt supplies the solution that is shown to the
        teacher of an attempt. "peers": another attempt that solved the question (the
        paper's code), so a single success has no demonstration. "own_if_solved": the
        attempt itself if it is solved, otherwise a peer (the paper's Table 2).
        "any_attempt": any solved attempt, including itself. "nobody": none.
      show_feedback: "never"; "without_solution", only where no solution is shown (the
        paper); "always".
      show_attempt: whether the attempt itself is shown before its feedback (an ablation
        in the paper's Table 6, where it lowers the score).
      strip_thinking: whether to remove the reasoning from demonstrations.
      template: of the user turn, with {prompt}, {solution}, {attempt} and {feedback}.
      solution_template: of a demonstration, with {solution}.
      feedback_template: of the feedback, with {feedback}.
    """

    demonstration_from: str
    show_feedback: str
    show_attempt: bool
    strip_thinking: bool
    template: str
    solution_template: str
    feedback_template: str


@dataclasses.dataclass(frozen=True)
class Shown:
    """What is shown to the teacher of one attempt after the question; None if not."""

    solution: str | None
    attempt: str | None
    feedback: str | None

    @property
    def teaches(self) -> bool:
        """Whether the teacher sees anything that the student did not."""
        return self.solution is not None or self.feedback is not None


def choose(
    rules: Rules,
    responses: Sequence[str],
    solved: Sequence[bool],
    feedbacks: Sequence[str],
    rng: random.Random,
) -> list[Shown]:
    """What is shown to the teacher of each attempt at one question.

    The demonstration is drawn at random from the eligible attempts: taking the shortest
    makes training collapse, and taking the first depends on their order.

    Args:
      rules: what may be shown.
      responses: the attempts' texts, as `thinking.answer_of` reads them.
      solved: whether each attempt solved the question.
      feedbacks: the environment's feedback on each attempt; empty for none.
      rng: drawn from once per attempt that has an eligible demonstration.

    Returns:
      One Shown per attempt, in the same order.
    """
    shown = thinking.answer_of if rules.strip_thinking else str
    solutions = [
        shown(response) if is_solved else ""
        for response, is_solved in zip(responses, solved, strict=True)
    ]
    return [
        _choose_one(rules, index, response, solutions, feedback, rng)
        for index, (response, feedback) in enumerate(
            zip(responses, feedbacks, strict=True)
        )
    ]


def _choose_one(rules, index, response, solutions, feedback, rng) -> Shown:
    # An empty demonstration would teach nothing.
    teaches = [bool(solution.strip()) for solution in solutions]
    eligible = _eligible(rules.demonstration_from, index, teaches)
    solution = solutions[rng.choice(eligible)] if eligible else None
    hidden = rules.show_feedback == "never" or (
        rules.show_feedback == "without_solution" and solution is not None
    )
    shown_feedback = None if hidden or not feedback else feedback
    show_attempt = rules.show_attempt and shown_feedback is not None
    attempt = response if show_attempt else None
    return Shown(solution, attempt, shown_feedback)


def _eligible(demonstration_from: str, index: int, solved: Sequence[bool]) -> list[int]:
    """Indices of the attempts that may be the demonstration of attempt `index`."""
    if demonstration_from == "nobody":
        return []
    if demonstration_from == "own_if_solved" and solved[index]:
        return [index]
    includes_own = demonstration_from == "any_attempt"
    return [
        other
        for other, is_solved in enumerate(solved)
        if is_solved and (includes_own or other != index)
    ]


def render(rules: Rules, prompt: str, shown: Shown) -> str:
    """The user turn that the teacher reads: the question, then what it is shown."""
    solution = attempt = feedback = ""
    if shown.solution is not None:
        solution = rules.solution_template.format(solution=shown.solution)
    if shown.attempt is not None:
        attempt = ATTEMPT_TEMPLATE.format(attempt=shown.attempt)
    if shown.feedback is not None:
        feedback = rules.feedback_template.format(feedback=shown.feedback)
    # `str.format` does not interpret braces in the texts that are inserted.
    return rules.template.format(
        prompt=prompt, solution=solution, attempt=attempt, feedback=feedback
    )
