"""What the self-teacher is shown: which solution, which feedback, in which words.

The rules and templates are those of the SDPO paper (arXiv:2601.20802, Table 2) and of
its code; where the two differ, each is a named value. Text only: truncation to a number
of tokens happens in `feedback.py`.
"""

import dataclasses
import random
import re
from collections.abc import Sequence

DEMONSTRATION_FROM = ("peers", "own_if_solved", "any_attempt", "nobody")
SHOW_FEEDBACK = ("never", "without_solution", "always")

# Around an attempt that its own teacher is shown (`reprompt.show_attempt`).
ATTEMPT_TEMPLATE = "\nYour earlier attempt:\n\n{attempt}"
_THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Rules:
    """The config's `reprompt` subtree, as this file reads it.

    Args:
      demonstration_from: who may supply the solution that an attempt is shown. "peers":
        another attempt at the question that solved it (the paper's code); then a sole
        success has nothing to learn from. "own_if_solved": a solved attempt is shown
        itself, any other a peer (the paper's Table 2). "any_attempt": any solved
        attempt, itself included. "nobody": none.
      show_feedback: "never"; "without_solution", only where no solution is shown (the
        paper); "always".
      show_attempt: whether the attempt itself stands before its feedback (the paper's
        Table 6 ablation; it hurts there).
      strip_thinking: remove <think> blocks from demonstrations.
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
    """What one attempt's teacher is shown beside the question; None is nothing."""

    solution: str | None
    attempt: str | None
    feedback: str | None

    @property
    def teaches(self) -> bool:
        """Whether there is anything that the student did not see."""
        return self.solution is not None or self.feedback is not None


def choose(
    rules: Rules,
    responses: Sequence[str],
    solved: Sequence[bool],
    feedbacks: Sequence[str],
    rng: random.Random,
) -> list[Shown]:
    """What each of one question's attempts is shown.

    The demonstration is drawn at random among the eligible attempts: taking the
    shortest makes training collapse, and the first is random only by accident.

    Args:
      rules: who is shown what.
      responses: the attempts' texts.
      solved: whether each solved the question.
      feedbacks: the environment's words on each; empty for none.
      rng: drawn from once per attempt that has an eligible demonstration.

    Returns:
      One Shown per attempt, in the same order.
    """
    return [
        _choose_one(rules, index, responses, solved, feedbacks[index], rng)
        for index in range(len(responses))
    ]


def _choose_one(rules, index, responses, solved, feedback, rng) -> Shown:
    eligible = _eligible(rules.demonstration_from, index, solved)
    solution = responses[rng.choice(eligible)] if eligible else None
    if solution is not None and rules.strip_thinking:
        solution = _THINKING.sub("", solution)
    hidden = rules.show_feedback == "never" or (
        rules.show_feedback == "without_solution" and solution is not None
    )
    shown_feedback = None if hidden or not feedback else feedback
    show_attempt = rules.show_attempt and shown_feedback is not None
    attempt = responses[index] if show_attempt else None
    return Shown(solution, attempt, shown_feedback)


def _eligible(demonstration_from: str, index: int, solved: Sequence[bool]) -> list[int]:
    """Indices of the attempts that may be the demonstration of attempt `index`."""
    if demonstration_from == "nobody":
        return []
    if demonstration_from == "own_if_solved" and solved[index]:
        return [index]
    own_too = demonstration_from == "any_attempt"
    return [
        other
        for other, is_solved in enumerate(solved)
        if is_solved and (own_too or other != index)
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
    # `str.format` reads braces in the template only, never in what is filled in.
    return rules.template.format(
        prompt=prompt, solution=solution, attempt=attempt, feedback=feedback
    )
