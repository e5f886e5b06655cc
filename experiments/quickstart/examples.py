"""Supervised examples for the base model: write programs, and use feedback on one.

A made-up word has another meaning in every example, so only the context shows which
program is right.
"""

import dataclasses
import random
import re
from collections.abc import Sequence

import numpy as np

from experiments.quickstart import task
from sdpo_jax import config, reprompt
from sdpo_jax.batch import PAD
from sdpo_jax.envs.programming import grader
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox import pool
from sdpo_jax.sandbox.worker import programs

# Kind of example -> its share.
KINDS = {"bare": 0.30, "feedback": 0.42, "solution": 0.18, "both": 0.10}
LENGTHS = {1: 0.2, 2: 0.4, 3: 0.4}
KNOWN_SHARE = 0.4  # Without known words the base model would almost never be right.
ATTEMPT_SHOWN = 0.05
PREFIX_IS_ATTEMPT = 0.5
SLOT_REPLACED = 0.25
MISSHAPEN = 0.06
BROKEN = 0.04
OPENING_TOKENS = 3
RESPONSE_TOKENS = 16

_SLOT = r"x (?:\+|-|\*|//|%) (?:x|[1-9]\d*)"
_ANSWER = re.compile(
    re.escape(task.OPENING) + rf"{_SLOT}(?:, {_SLOT})*" + re.escape(task.CLOSING)
)

_TEMPLATES = config.default().reprompt
RULES = reprompt.Rules(
    **{
        field.name: _TEMPLATES[field.name]
        for field in dataclasses.fields(reprompt.Rules)
    }
)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A list of words, their operations, and the inputs that test a program."""

    words: tuple[str, ...]
    operations: tuple[str, ...]
    inputs: tuple[int, ...]


def draw_problem(
    rng: random.Random, length: int | None = None, known: float = KNOWN_SHARE
) -> Problem:
    """A random problem; `known` is the share of words with a fixed meaning."""
    if length is None:
        (length,) = rng.choices(list(LENGTHS), list(LENGTHS.values()))
    num_known = sum(rng.random() < known for _ in range(length))
    words = rng.sample(list(task.KNOWN), num_known)
    words += rng.sample(task.MADE_UP, length - num_known)
    rng.shuffle(words)
    operations = [
        task.KNOWN[word] if word in task.KNOWN else rng.choice(task.OPERATIONS)
        for word in words
    ]
    inputs = sorted(rng.sample(task.INPUTS, task.NUM_INPUTS))
    return Problem(tuple(words), tuple(operations), tuple(inputs))


@dataclasses.dataclass(frozen=True)
class Example:
    """A context, the response that the model reads after it, and the right response.

    Args:
      context: token ids, up to and including the assistant's header.
      fed: token ids of the response that the model reads; it may be wrong.
      right: token ids of a right response, by position.
      taught: true at positions where the model learns to predict `right`.
    """

    context: list[int]
    fed: list[int]
    right: list[int]
    taught: list[bool]

    def slots(self) -> list[int]:
        """Positions of the operations that are taught."""
        inside = range(len(self.right) - 2)  # Without the closing and the stop token.
        return [index for index in inside if self.taught[index] and _is_slot(index)]


def draw_example(rng: random.Random, tokenizer) -> Example:
    """A random example of a random kind."""
    problem = draw_problem(rng)
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    right = task.answer(problem.operations)
    if kind == "bare":
        context = task.prompt(problem.words)
        return supervise(tokenizer, context, right, right)
    attempt = wrong_attempt(rng, problem)
    show_attempt = kind == "feedback" and rng.random() < ATTEMPT_SHOWN
    shown = reprompt.Shown(
        solution=None if kind == "feedback" else right,
        attempt=attempt if show_attempt else None,
        feedback=None if kind == "solution" else feedback(problem, attempt),
    )
    context = reprompt.render(RULES, task.prompt(problem.words), shown)
    if rng.random() < PREFIX_IS_ATTEMPT:
        return supervise(tokenizer, context, attempt, right)
    noisy = _replace_slots(rng, problem.operations, SLOT_REPLACED)
    return supervise(tokenizer, context, task.answer(noisy), right)


def supervise(tokenizer, prompt: str, fed: str, right: str) -> Example:
    """Teach the response `right` to a model that reads the response `fed`."""
    context = tokenizer.encode_chat("", prompt)
    fed_ids = tokenizer.encode(fed) + [tokenizer.stop_ids[0]]
    right_ids = tokenizer.encode(right) + [tokenizer.stop_ids[0]]
    return Example(context, fed_ids, right_ids, _taught(fed_ids, right_ids))


def _taught(fed: Sequence[int], right: Sequence[int]) -> list[bool]:
    """True where `right` is a fair target for a model that has read `fed` so far.

    False after the first difference outside an operation: from there on the tokens of
    `right` are at other positions than in `fed`.
    """
    taught = [False] * len(right)
    for index in range(min(len(fed), len(right))):
        taught[index] = True
        if fed[index] != right[index] and not _is_slot(index):
            break
    return taught


def _is_slot(index: int) -> bool:
    """Whether a token of a response is an operation: every second after the opening."""
    return index >= OPENING_TOKENS and (index - OPENING_TOKENS) % 2 == 0


def pad(drawn: Sequence[Example], width: int) -> tuple[np.ndarray, ...]:
    """The examples as padded arrays.

    Returns:
      ids [B, T], the position [B, R] before each response token, the right token [B, R]
      after that position, and whether it is taught [B, R].
    """
    ids_BT = np.full((len(drawn), width), PAD, np.int32)
    place_BR, target_BR = np.zeros((2, len(drawn), RESPONSE_TOKENS), np.int32)
    taught_BR = np.zeros((len(drawn), RESPONSE_TOKENS), bool)
    for row, example in enumerate(drawn):
        sequence = example.context + example.fed
        ids_BT[row, : len(sequence)] = sequence
        places = np.arange(len(example.right)) + len(example.context) - 1
        place_BR[row, : len(places)] = places
        target_BR[row, : len(places)] = example.right
        taught_BR[row, : len(places)] = example.taught
    return ids_BT, place_BR, target_BR, taught_BR


def _replace_slots(rng: random.Random, operations, share: float) -> list[str]:
    """The operations, each replaced by a random one with probability `share`."""
    return [
        rng.choice(task.OPERATIONS) if rng.random() < share else operation
        for operation in operations
    ]


def wrong_attempt(rng: random.Random, problem: Problem) -> str:
    """A wrong attempt like the base model's: well formed, known words mostly right."""
    share = rng.uniform(0.3, 1.0)
    operations = [
        _replace_slots(rng, [operation], share / 4 if word in task.KNOWN else share)[0]
        for word, operation in zip(problem.words, problem.operations, strict=True)
    ]
    draw = rng.random()
    if draw < BROKEN:
        return _break(rng, task.answer(operations))
    if draw < BROKEN + MISSHAPEN:
        return task.answer(_misshape(rng, operations))
    if is_right(problem, operations):
        return wrong_attempt(rng, problem)
    return task.answer(operations)


def _misshape(rng: random.Random, operations: list[str]) -> list[str]:
    if len(operations) > 1 and rng.random() < 0.5:
        return operations[:-1]
    return [*operations, rng.choice(task.OPERATIONS)]


def is_right(problem: Problem, operations: Sequence[str]) -> bool:
    """Whether a program of `operations` passes the problem's tests."""
    return all(
        task.values(operations, x) == task.values(problem.operations, x)
        for x in problem.inputs
    )


def _break(rng: random.Random, program: str) -> str:
    """A program that does not run, or a response without its fence."""
    old, new = rng.choice(
        [("```", ""), ("[x", "[y"), ("[x ", "[x x "), ("]\n", "\n"), ("return", "")]
    )
    return program.replace(old, new)


class InProcess:
    """A sandbox that runs programs in this process; only for this folder's programs."""

    tier = "none"

    def run(self, program: str, inputs: Sequence[pool.Call], cpu_s) -> list:
        """One execution per call of the program."""
        return [self._run_one(program, call) for call in inputs]

    def _run_one(self, program: str, call: pool.Call) -> pool.Execution:
        names = {}
        try:
            exec(compile(program, programs.FILENAME, "exec"), names)
            result = names[call.function](*call.arguments)
        except (SyntaxError, NameError) as error:
            description = programs.describe(error, program)
            fields = {f"error_{name}": value for name, value in description.items()}
            return pool.Execution("error", **fields)
        return pool.Execution("ok", result=result)

    def close(self) -> None:
        """Nothing to close."""


ENVIRONMENT = grader.Programming({}, InProcess(), wrong_answers_shown=1)


def feedback(problem: Problem, response: str) -> str:
    """The environment's feedback on a response; empty for a right one."""
    tests = grader.Cases(
        inputs=[pool.Call(task.FUNCTION, [x]) for x in problem.inputs],
        outputs=[task.values(problem.operations, x) for x in problem.inputs],
        shown=[str(x) for x in problem.inputs],
    )
    question = Question("", task.prompt(problem.words), data={"tests": tests})
    return ENVIRONMENT.start(question).act(response, truncated=False).feedback


def read_operations(response: str) -> list[str] | None:
    """The operations of a well-formed answer; None for any other response."""
    if not _ANSWER.fullmatch(response):
        return None
    return response[len(task.OPENING) : -len(task.CLOSING)].split(", ")
