r"""From rows of public datasets to the rows that the environments read.

A converter gets one row, and where it stands, and returns the rows that it makes: none
for what its environment cannot grade. It raises ValueError for a malformed row, or
LeftOut where the dataset is known to hold such rows.

What was compared with what others made of the same rows: SciKnowEval's prompts, system
turn, options and answers with all files of the official SDPO repository; ToolAlpaca's
evaluation rows with its 68 (prompt and answer). Fields of datasets on the hub are those
that their cards and the code that reads them name; the hub itself could not be reached.
ToolAlpaca's training rows could be compared with nothing.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sdpo_jax.questions import boxed, livecodebench, openthoughts, options
from sdpo_jax.questions.rows import Row, check_object, field

Converter = Callable[[Row, str], list[dict[str, Any]]]

# The wording of the official SDPO files, to the letter.
_CHOOSE = """
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
_CALL = """\
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
_BOX = (
    "{problem}\n\nPlease reason step by step, and put your final answer within "
    "\\boxed{{}}."
)
_CHOICE_TYPES = ("mcq-4-choices", "mcq-2-choices")


class LeftOut(Exception):
    """No question can be made of a row; the others are still of use."""


def sciknoweval(row: Row, where: str) -> list[dict[str, Any]]:
    """A level 3 question with options; the paper takes one `where.domain` at a time."""
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
    made = {"dataset": "sciknoweval", "system": _CHOOSE, "answer": answer}
    made["prompt"] = f"{question}\n\n{options}\nPlease reason step by step."
    return [made]


def toolalpaca(row: Row, where: str) -> list[dict[str, Any]]:
    """The questions about one tool that can be answered at once.

    An answer that needs what a call returned, which the evaluation rows write as
    "${...}", is left out, and so is a training instance of several calls. As in the
    official files, any "$" counts.
    """
    prompt = functools.partial(
        _CALL.format,
        name=field(row, "Name", str, where),
        description=field(row, "Description", str, where),
        documentation=field(row, "NLDocumentation", str, where),
    )
    answered = _instances if "Instances" in row else _golden
    return [
        {
            "dataset": "tooluse",
            "prompt": prompt(question=question),
            "answer": json.dumps(calls),
        }
        for question, calls in answered(row, where)
        if calls and "$" not in json.dumps(calls)
    ]


def _golden(row: Row, where: str) -> Iterator[tuple[str, list]]:
    """Questions of an evaluation file and the calls that answer them."""
    questions, answers = (
        field(row, name, list, where) for name in ("Instructions", "Golden_Answers")
    )
    if len(questions) != len(answers):
        raise ValueError(
            f"{where}: {len(questions)} Instructions, {len(answers)} Golden_Answers"
        )
    return zip(questions, answers, strict=True)


def _instances(row: Row, where: str) -> Iterator[tuple[str, list]]:
    """Questions of the training file; no calls where they cannot be known at once."""
    for instance in field(row, "Instances", list, where):
        check_object(instance, f"{where}, field Instances")
        question = field(instance, "input", str, where).rsplit("\nHint: ", 1)[0]
        steps = instance.get("intermediate_steps") or []
        calls = [_call(step, where) for step in steps]
        yield question, calls if len(calls) == 1 and _is_known(calls[0]) else []


def _call(step: Any, where: str) -> dict[str, str]:
    """The call of one step, which is ((tool, arguments, text), what it returned)."""
    try:
        tool, arguments = step[0][0], step[0][1]
    except (TypeError, LookupError) as error:
        raise ValueError(
            f"{where}, field intermediate_steps: expected a call and what it returned, "
            f"got {step!r:.80}"
        ) from error
    return {"Action": tool, "Action_Input": arguments}


def _is_known(call: Mapping[str, str]) -> bool:
    """Whether this calls the tool with arguments that can be read."""
    try:
        arguments = json.loads(call["Action_Input"])
    except (TypeError, ValueError):
        return False
    # The tool of this name asks the user.
    return isinstance(arguments, dict) and call["Action"] != "getDetails"


def _problem(
    row: Row,
    where: str,
    uid: str = "id",
    problem: str = "problem",
    answer: str = "answer",
) -> list[dict[str, Any]]:
    """A problem with one answer, without the box that some datasets put around it.

    Args:
      row: of the dataset.
      where: it stands.
      uid: the field that names the problem.
      problem: the field of its text.
      answer: the field of its answer.
    """
    if row.get("answer_type") == "description":
        return []  # Its answer is prose, which needs a judge.
    right = row.get(answer)
    box = boxed.last_box(right) if isinstance(right, str) else None
    if box is not None and right.strip(" \n$.") == f"\\boxed{{{box}}}":
        right = box
    prompt = _BOX.format(problem=field(row, problem, str, where))
    return [{"uid": row.get(uid), "prompt": prompt, "answer": right}]


def _livecodebench(row: Row, where: str, tests: str = "all") -> list[dict[str, Any]]:
    return [livecodebench.row(row, where, tests)]


def _or_left_out(
    convert: Callable[[Row], dict[str, Any]],
) -> Converter:
    """A converter that leaves out the rows that no question can be made of."""

    def converted(row: Row, where: str) -> list[dict[str, Any]]:
        try:
            made = convert(row)
        except ValueError as error:
            raise LeftOut(f"{where}: {error}") from error
        # Named by its place: a dataset may hold the same problem twice.
        return [{name: value for name, value in made.items() if name != "uid"}]

    return converted


_openthoughts = _or_left_out(openthoughts.from_openthoughts)
_arena = functools.partial(_problem, uid="problem_idx")

# Dataset -> its converter.
CONVERTERS: Mapping[str, Converter] = {
    "hicai-zju/SciKnowEval": sciknoweval,
    "tangqiaoyu/ToolAlpaca": toolalpaca,  # On GitHub: its files are read by path.
    "livecodebench/code_generation_lite": _livecodebench,
    "livecodebench/half": functools.partial(_livecodebench, tests="half"),
    "open-thoughts/OpenThoughts-114k": _openthoughts,
    "siyanzhao/Openthoughts_math_30k_opsd": _openthoughts,
    "Idavidrein/gpqa": _or_left_out(options.from_gpqa),
    "TIGER-Lab/MMLU-Pro": _or_left_out(options.from_mmlu_pro),
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
