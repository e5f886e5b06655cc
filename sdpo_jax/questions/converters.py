"""Converts rows of public datasets into rows that the environments read.

A converter takes one dataset row and its location (for messages) and returns a list of
environment rows. The list is empty if the environment cannot grade the row. A malformed
row raises ValueError, or SkippedRow where the dataset is known to contain such rows.

Checked against published conversions: SciKnowEval's prompts, system messages, options
and answers equal those in all files of the official SDPO repository, and ToolAlpaca's
evaluation rows equal its 68 (prompt and answer). Not checked: ToolAlpaca's training
rows, for which no published conversion exists, and the field names of datasets on the
hub, which follow their dataset cards and the code that reads them.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sdpo_jax.questions import (
    boxed,
    files,
    livecodebench,
    openthoughts,
    options,
    solutions,
)
from sdpo_jax.questions.rows import Row, check_object, field

Converter = Callable[[Row, str], list[dict[str, Any]]]

# The next two prompts equal those of the official SDPO files, character by character.
_SCIKNOWEVAL_SYSTEM = """
Given a question and four options, please select the right answer. Respond in the \
following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option (A, B, C, \
or D), and nothing else. Do not restate the answer text. For example, if the answer is \
"A", just output:
<answer>
A
</answer>
"""
_TOOLALPACA_PROMPT = """\
Your task is to answer the user's question using available tools.\x20
You have access to the following tools:
Name: {name}
Description: {description}
Documentation:
{documentation}
Use the following format:
Thought: you should always think about what to do
Action: the action to take, should be one of the tool names.
Action Input: the input to the action, must be in JSON format. All of the action input \
must be realistic and from the user.

Begin!
Question: {question}"""
_PROBLEM_PROMPT = (
    "{problem}\n\nPlease reason step by step, and put your final answer within "
    "\\boxed{{}}."
)
_CHOICE_TYPES = ("mcq-4-choices", "mcq-2-choices")


class SkippedRow(Exception):
    """A row that cannot become a question, in a dataset that stays usable."""


def sciknoweval(row: Row, where: str) -> list[dict[str, Any]]:
    """A level 3 question with options; the paper trains on one domain at a time."""
    level = field(field(row, "details", dict, where), "level", str, where)
    if level != "L3" or field(row, "type", str, where) not in _CHOICE_TYPES:
        return []
    choices = field(row, "choices", dict, where)
    labels, texts = (field(choices, name, list, where) for name in ("label", "text"))
    answer = field(row, "answerKey", str, where)
    if len(labels) != len(texts) or answer not in labels:
        raise ValueError(
            f"{where}: expected as many labels as texts, and answerKey among them; got "
            f"{labels}, {len(texts)} texts and {answer!r}"
        )
    options = "\n".join(
        f"{label}: {text}" for label, text in zip(labels, texts, strict=True)
    )
    question = field(row, "question", str, where)
    return [
        {
            "dataset": "sciknoweval",
            "system": _SCIKNOWEVAL_SYSTEM,
            "prompt": f"{question}\n\n{options}\nPlease reason step by step.",
            "answer": answer,
        }
    ]


def toolalpaca(row: Row, where: str) -> list[dict[str, Any]]:
    """The questions about one tool whose calls depend on no earlier result.

    Skips a question whose call needs the result of another call, which evaluation rows
    write as "${...}", and a training instance with several calls. As in the official
    files, any "$" counts as such a reference, even in a price.
    """
    prompt = functools.partial(
        _TOOLALPACA_PROMPT.format,
        name=field(row, "Name", str, where),
        description=field(row, "Description", str, where),
        documentation=field(row, "NLDocumentation", str, where),
    )
    questions_of = _training_questions if "Instances" in row else _test_questions
    return [
        {
            "dataset": "tooluse",
            "prompt": prompt(question=question),
            "answer": json.dumps(calls),
        }
        for question, calls in questions_of(row, where)
        if calls and "$" not in json.dumps(calls)
    ]


def _test_questions(row: Row, where: str) -> Iterator[tuple[str, list]]:
    """The questions of an evaluation row, each with the calls that answer it."""
    questions, answers = (
        field(row, name, list, where) for name in ("Instructions", "Golden_Answers")
    )
    if len(questions) != len(answers):
        raise ValueError(
            f"{where}: {len(questions)} Instructions, {len(answers)} Golden_Answers"
        )
    return zip(questions, answers, strict=True)


def _training_questions(row: Row, where: str) -> Iterator[tuple[str, list]]:
    """The questions of a training row, each with its one call, or with no call."""
    for instance in field(row, "Instances", list, where):
        check_object(instance, f"{where}, field Instances")
        question = field(instance, "input", str, where).rsplit("\nHint: ", 1)[0]
        steps = instance.get("intermediate_steps") or []
        calls = [_call(step, where) for step in steps]
        # Later calls may use the result of the first, which a single answer cannot.
        is_gradable = len(calls) == 1 and _has_valid_arguments(calls[0])
        yield question, calls if is_gradable else []


def _call(step: Any, where: str) -> dict[str, str]:
    """The call of one step, which has the form ((tool, arguments, text), result)."""
    try:
        tool, arguments = step[0][0], step[0][1]
    except (TypeError, LookupError) as error:
        raise ValueError(
            f"{where}, field intermediate_steps: expected a call and what it returned, "
            f"got {step!r:.80}"
        ) from error
    return {"Action": tool, "Action_Input": arguments}


def _has_valid_arguments(call: Mapping[str, str]) -> bool:
    """Whether this is a call of the tool with a JSON object as its arguments."""
    try:
        arguments = json.loads(call["Action_Input"])
    except (TypeError, ValueError):
        return False
    # The dataset's getDetails asks the user a question, so it is no call of the tool.
    return isinstance(arguments, dict) and call["Action"] != "getDetails"


def _problem(
    row: Row,
    where: str,
    uid: str = "id",
    problem: str = "problem",
    answer: str = "answer",
) -> list[dict[str, Any]]:
    """A problem with one answer; a box around the answer is removed.

    Args:
      row: the dataset row.
      where: its location, for messages.
      uid: name of the field with the problem's identifier.
      problem: name of the field with its text.
      answer: name of the field with its answer.
    """
    if row.get("answer_type") == "description":
        return []  # A prose answer needs a judge, not an exact comparison.
    value = row.get(answer)
    box = boxed.last_box(value) if isinstance(value, str) else None
    # A box inside a longer text stays: the text around it is part of the answer.
    if box is not None and value.strip(" \n$.") == f"\\boxed{{{box}}}":
        value = box
    prompt = _PROBLEM_PROMPT.format(problem=field(row, problem, str, where))
    return [{"uid": row.get(uid), "prompt": prompt, "answer": value}]


def _gsm8k(row: Row, where: str) -> list[dict[str, Any]]:
    """A problem whose answer follows the mark at the end of its solution."""
    solution = field(row, "answer", str, where)
    answer = solutions.marked_answer(solution) or ""
    return _problem(row | {"answer": answer}, where, problem="question")


def _livecodebench(row: Row, where: str, tests: str = "all") -> list[dict[str, Any]]:
    return [livecodebench.from_livecodebench(row, where, tests)]


def _skipping_malformed(
    convert: Callable[[Row], dict[str, Any]],
) -> Converter:
    """A converter that raises SkippedRow instead of ValueError."""

    def convert_or_skip(row: Row, where: str) -> list[dict[str, Any]]:
        try:
            converted = convert(row)
        except ValueError as error:
            raise SkippedRow(f"{where}: {error}") from error
        if files.lone_surrogate(converted["prompt"]):
            raise SkippedRow(f"{where}: the prompt holds half a surrogate pair")
        # A dataset may contain a problem twice, with one uid. A row without a uid is
        # named by its index instead.
        return [{name: value for name, value in converted.items() if name != "uid"}]

    return convert_or_skip


_openthoughts = _skipping_malformed(openthoughts.from_openthoughts)
_arena = functools.partial(_problem, uid="problem_idx")

# Dataset -> its converter.
CONVERTERS: Mapping[str, Converter] = {
    "hicai-zju/SciKnowEval": sciknoweval,
    "tangqiaoyu/ToolAlpaca": toolalpaca,  # A GitHub repository: read its files by path.
    "livecodebench/code_generation_lite": _livecodebench,
    "livecodebench/half": functools.partial(_livecodebench, tests="half"),
    "open-thoughts/OpenThoughts-114k": _openthoughts,
    "siyanzhao/Openthoughts_math_30k_opsd": _openthoughts,
    "Idavidrein/gpqa": _skipping_malformed(options.from_gpqa),
    "TIGER-Lab/MMLU-Pro": _skipping_malformed(options.from_mmlu_pro),
    "openai/gsm8k": _gsm8k,
    "HuggingFaceH4/MATH-500": functools.partial(_problem, uid="unique_id"),
    "HuggingFaceH4/aime_2024": _problem,
    "math-ai/aime24": functools.partial(_problem, answer="solution"),
    "math-ai/aime25": _problem,
    "MathArena/aime_2025": _arena,
    "MathArena/hmmt_feb_2025": _arena,
    "MathArena/hmmt_nov_2025": _arena,
    "meituan-longcat/AMO-Bench": functools.partial(
        _problem, uid="question_id", problem="prompt"
    ),
}
