"""Tasks of the library reasoning-gym, which makes questions up and scores answers.

A file holds a JSON list of what to make, not the questions themselves:

  [{"task": "leg_counting", "seed": 1, "size": 1000, "config": {"max_animals": 8}}]

`config` may be left out. Question n of a task is made of the seed plus n: splits of one
task and config must leave room between their seeds, which is checked.

Questions are made, and answers scored, in the sandbox. So a question is the same in
every run, and an answer that the library evaluates (as Python, or with sympy) has
nothing in reach. What such a scorer may be given is limited by `_EVALUATED`, for it
would evaluate a program as well. Scores are the library's, from 0 to 1; so is what they
miss, but for tasks whose scorer accepts what the question forbids: those are refused.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_jax.envs import answer_extraction, feedback_text, installed_packages, task
from sdpo_jax.envs.base import GraderFailure, Verdict
from sdpo_jax.envs.single_turn import SingleTurn, sandboxed, unreadable
from sdpo_jax.questions import rows
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Packages

INCORRECT_FORMAT = (
    "Incorrect Format: Give the answer, and nothing else, between <answer> and "
    "</answer>."
)
_ASKED = (
    "{question}\n\nGive the answer, and nothing else, between <answer> and </answer>."
)
_FIELDS = {"task": str, "seed": int, "size": int, "config": dict}
_MOST_CHARS = 10_000
_CHUNK = 200  # Questions made by one call.
_MAKING_S = 600.0  # Processor seconds of such a call.
_MAKING_KB = 16 << 10  # Of what it returns.

# Tasks whose scorer accepts what is wrong -> why.
_REFUSED = {
    "puzzle24": "its scorer accepts any four numbers, and rounds what they make",
    "composite": "name its tasks one by one",
}
# What the scorers that evaluate an answer may be given. Python's own names are in their
# reach, so there are only letters, which are variables, and these functions.
_SUM = r"(?!.*(?:\*\*|//))[0-9+\-*/() ]*"
_NAME = "[A-Za-z]|a?(?:sin|cos|tan)h?|sec|csc|cot|exp|log|ln|sqrt|pi"
_EXPRESSION = (
    rf"(?!.*\. *[A-Za-z])(?:[0-9+\-*/^(). ]|(?<![A-Za-z])(?:{_NAME})(?![A-Za-z]))*"
)
_LIST = "list"  # It is read with `ast.literal_eval`, not `eval`.
_EVALUATED = {
    "countdown": _SUM,
    "intermediate_integration": _EXPRESSION,
    "polynomial_multiplication": _EXPRESSION,
    "simple_integration": _EXPRESSION,
    "binary_matrix": _LIST,
    "n_queens": _LIST,
    "spiral_matrix": _LIST,
    "string_insertion": _LIST,
}

_PREPARE = """
import os
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import reasoning_gym
"""
_PROGRAM = """
import ast, re, sys
import reasoning_gym

def made(task, seed, size, config):
    return reasoning_gym.create_dataset(task, seed=seed, size=size, **config)

def questions(task, seed, size, config, first, last):
    dataset = made(task, seed, size, config)
    return [kept(dataset[index]) for index in range(first, last)]

def kept(entry):
    # The whole entry where it can be written down; it may be slow to make again.
    text = repr(entry)
    try:
        same = repr(ast.literal_eval(text)) == text
    except (ValueError, SyntaxError):
        same = False
    return [entry["question"], text if same else None]

def score(task, seed, size, config, index, question, entry, answer, evaluated):
    dataset = made(task, seed, size, config)
    entry = ast.literal_eval(entry) if entry else dataset[index]
    if entry["question"] != question:
        raise AssertionError("the library makes another question than before")
    if evaluated == "list":
        sys.modules[type(dataset).__module__].eval = ast.literal_eval
    elif evaluated and not re.fullmatch(evaluated, answer):
        return None
    try:
        return float(dataset.score_answer(answer, entry))
    except Exception:
        # Either the scorer is at fault, and then it fails on its own answer too, or the
        # answer is none that it reads.
        dataset.score_answer(entry["answer"], entry)
        return None
"""


def environment(
    files: Mapping[str, str | Path],
    make_sandbox: Callable[..., Sandbox] = Sandbox,
) -> SingleTurn:
    """An environment of made-up questions.

    Args:
      files: split ("train", "validation" or "heldout") -> file of what to make.
      make_sandbox: called with the packages that the library needs.

    Raises:
      ValueError: if a file is malformed (names file, row and field), splits overlap,
        or the library is missing or cannot make what is asked for.
      SandboxUnavailable: if no sandbox holds here, or the library does not load in it.
    """
    modules = installed_packages.modules(
        "env.name=reasoning_gym", "reasoning-gym", "reasoning-gym>=0.1.25,<0.2"
    )
    specs = {split: _specs(Path(file)) for split, file in files.items()}
    _refuse_overlaps([spec for found in specs.values() for spec in found])
    sandbox = make_sandbox(packages=Packages(modules, _PREPARE))
    try:
        questions = {
            split: [q for spec in found for q in _questions(sandbox, *spec)]
            for split, found in specs.items()
        }
    except BaseException:
        sandbox.close()
        raise
    return sandboxed(questions, grade, sandbox)


def _specs(file: Path) -> list[tuple[dict[str, Any], str]]:
    """What a file asks for, and where it says so."""
    if not file.is_file():
        raise ValueError(
            f"{file}: is no file; every split of reasoning_gym needs one, with seeds "
            "of its own"
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, list) or not found:
        raise ValueError(f"{file}: expected a JSON list of what to make")
    return [
        (_spec(row, f"{file}, row {number}"), f"{file}, row {number}")
        for number, row in enumerate(found, start=1)
    ]


def _spec(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {type(row).__name__}")
    row = {"config": {}} | row
    if unknown := row.keys() - _FIELDS.keys():
        raise ValueError(
            f"{where}, field {min(unknown)}: there are only {', '.join(_FIELDS)}"
        )
    spec = {name: rows.field(row, name, kind, where) for name, kind in _FIELDS.items()}
    for name, least in (("seed", 0), ("size", 1)):
        if isinstance(spec[name], bool) or not least <= spec[name] < 1 << 31:
            raise ValueError(
                f"{where}, field {name}: expected at least {least}, got {spec[name]}"
            )
    if reserved := spec["config"].keys() & {"seed", "size"}:
        raise ValueError(f"{where}, field config: {min(reserved)} stands beside it")
    if spec["task"] in _REFUSED:
        raise ValueError(
            f"{where}, field task: {spec['task']} is refused: {_REFUSED[spec['task']]}"
        )
    return spec


def _refuse_overlaps(specs: Sequence[tuple[dict[str, Any], str]]) -> None:
    """Refuse to make one question twice, here or in another split."""
    ends: dict[str, tuple[int, str]] = {}
    for spec, where in sorted(specs, key=lambda pair: pair[0]["seed"]):
        name = spec["task"] + json.dumps(spec["config"], sort_keys=True)
        end, other = ends.get(name, (0, ""))
        if spec["seed"] < end:
            raise ValueError(
                f"{where}, field seed: {spec['seed']} makes questions that {other} "
                f"makes too; take a seed from {end} on"
            )
        ends[name] = (spec["seed"] + spec["size"], where)


def _questions(sandbox: Sandbox, spec: dict[str, Any], where: str) -> list[Question]:
    """The questions of one row, made in parts."""
    found = []
    for first in range(0, spec["size"], _CHUNK):
        last = min(first + _CHUNK, spec["size"])
        call = Call("questions", {**spec, "first": first, "last": last})
        (execution,) = sandbox.run(
            _PROGRAM, [call], cpu_s=_MAKING_S, output_kb=_MAKING_KB
        )
        if execution.status != "ok":
            raise ValueError(
                f"{where}: reasoning-gym cannot make it: {execution.status} "
                f"{execution.error_type} {execution.error_message:.200}"
            )
        found += execution.result
    config = json.dumps(spec["config"], sort_keys=True).encode()
    config = hashlib.sha256(config).hexdigest()[:8] if spec["config"] else "default"
    return [
        Question(
            f"{spec['task']}/{config}/{spec['seed'] + index}",
            _ASKED.format(question=text),
            data={
                "arguments": {**spec, "index": index, "question": text, "entry": entry}
            },
        )
        for index, (text, entry) in enumerate(found)
    ]


def grade(
    sandbox: Sandbox, question: Question, response: str, truncated: bool
) -> Verdict:
    """The library's score of the last answer tag.

    Raises:
      GraderFailure: if the sandbox failed twice, or scoring did; nothing is known of
        the answer.
    """
    answer = (answer_extraction.last_tag(response, closed=truncated) or "").strip()
    if not answer or len(answer) > _MOST_CHARS:
        return unreadable(INCORRECT_FORMAT, truncated)
    score = _score(sandbox, question, answer)
    if score == 1:
        return Verdict(1.0, "Accepted", measurements={"format": 1.0})
    read = score is not None
    told = "is not the right answer" if read else "is no answer to such a question"
    told = f"Wrong Answer: {feedback_text.cut(answer)} {told}."
    measurements = {"format": float(read)}
    return Verdict(
        score or 0.0, "Wrong Answer", feedback_text.feedback([told]), measurements
    )


def _score(sandbox: Sandbox, question: Question, answer: str) -> float | None:
    """The library's score; None for what it cannot read."""
    arguments = question.data["arguments"]
    evaluated = _EVALUATED.get(arguments["task"], "")
    call = Call("score", {**arguments, "answer": answer, "evaluated": evaluated})
    (execution,) = sandbox.run(_PROGRAM, [call])
    score = execution.result
    fair = score is None or type(score) is float and 0 <= score <= 1
    if execution.status != "ok" or not fair or (score and math.isnan(score)):
        raise GraderFailure(
            f"reasoning-gym could not score question {question.uid}: "
            f"{execution.status} {execution.error_type} "
            f"{execution.error_message:.200} {score!r:.80}"
        )
    return score


TASK = task.Task(lambda env: environment(task.files(env), task.sandboxes(env)))
