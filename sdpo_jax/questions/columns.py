"""Reads a row's name, prompt and ground truth, in the columns that data sets have.

name          "uid", or "idx" as in the official SDPO files; without either, a hash of
              the prompt and the system message
prompt        text and perhaps "system", or chat messages: one of the role "user",
              perhaps after one of the role "system", as TRL and verl write them
ground truth  "reward_model.ground_truth" as verl writes it, or "ground_truth"; stands
              for whichever of "answer", "tests" and "reference" a task reads, where
              the row has no such column
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from sdpo_jax.questions import files

Row = Mapping[str, Any]

_NAMES = ("uid", "idx")
# Columns that other data sets have instead of a prompt.
_LIKE_PROMPT = ("question", "problem", "instruction", "query", "input", "text")
# Messages that a table holds as text, in JSON or as Python shows them.
_MESSAGES = re.compile(r"""\s*(?:array\()?\[\s*\{\s*["'](?:role|content)["']""")
# What the prompts of TRL's and verl's data sets may hold in addition.
_NOT_TEXT = ("images", "videos")
# Columns of objects, which a table of text holds as JSON.
_OBJECTS = ("rule", "reward_model")
# What tasks call the ground truth of a question.
_GROUND_TRUTH = ("answer", "tests", "reference")


def check_object(row: Any, where: str) -> None:
    """Raise ValueError unless the row is a JSON object."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {type(row).__name__}")


def field(row: Row, name: str, kind: type, where: str) -> Any:
    """`row[name]`, checked to have type `kind`.

    Raises:
      ValueError: if the field is missing or has another type.
    """
    if not isinstance(row.get(name), kind):
        raise ValueError(
            f"{where}, field {name}: expected {kind.__name__}, {got(row, name)}"
        )
    return row[name]


def got(row: Row, name: str) -> str:
    """What a row has in a field, for messages; or the fields that it has instead."""
    value = f"got {row.get(name)!r:.80}"
    if name in row:
        return value
    return f"{value}; the row has {', '.join(map(str, row)) or 'no field':.200}"


def check_finite(value: Any, where: str) -> None:
    """Refuse a NaN or an infinity in an expected value, at any depth.

    JSON has neither, and NaN equals nothing, so no attempt could be right.
    """
    try:
        json.dumps(value, allow_nan=False, default=str)
    except ValueError as error:
        raise ValueError(
            f"{where}: expected finite numbers, got {value!r:.80}; correct the value "
            "or leave out the row"
        ) from error


def name_of(row: Row, where: str) -> str | None:
    """The name that a row gives itself; None if it gives none.

    Raises:
      ValueError: if the name is neither text nor a whole number.
    """
    uid = next((row[name] for name in _NAMES if row.get(name) is not None), None)
    if uid is None:
        return None
    if not isinstance(uid, str | int) or isinstance(uid, bool):
        raise ValueError(f"{where}, field uid (or idx): expected a name, got {uid!r}")
    if not str(uid).strip():
        raise ValueError(f"{where}, field uid (or idx): is empty")
    _check_encodable(str(uid), f"{where}, field uid (or idx)")
    return str(uid)


def name_by_content(prompt: str, system: str) -> str:
    """A name that depends on the texts alone, so every process gives the same."""
    content = json.dumps([system, prompt]).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def prompt_and_system(row: Row, where: str) -> tuple[str, str]:
    """The texts of the user's and the system's message; the second may be empty.

    Raises:
      ValueError: if there is no prompt, or its messages are no single question.
    """
    if seen := [name for name in _NOT_TEXT if row.get(name)]:
        raise ValueError(
            f"{where}, field {seen[0]}: a question is text alone; leave out such rows"
        )
    has_messages = row.get("prompt") is None and row.get("messages") is not None
    name = "messages" if has_messages else "prompt"
    given = _decoded(row.get(name), f"{where}, field {name}")
    system = row.get("system") or ""
    if not isinstance(system, str):
        raise ValueError(f"{where}, field system: expected text, got {system!r:.80}")
    if isinstance(given, str):
        prompt = given
    elif isinstance(given, list):
        prompt, of_messages = _of_messages(given, f"{where}, field {name}")
        if system and of_messages and system != of_messages:
            raise ValueError(
                f"{where}, field system: differs from the system message of {name}; "
                "leave out one of them"
            )
        system = system or of_messages
    else:
        other = [column for column in _LIKE_PROMPT if isinstance(row.get(column), str)]
        hint = f"{where} (rename its {other[0]} to prompt)" if other else where
        prompt = field(row, name, str, hint)
    if not prompt.strip():
        raise ValueError(f"{where}, field {name}: is empty")
    _check_encodable(prompt, f"{where}, field {name}")
    _check_encodable(system, f"{where}, field system")
    return prompt, system


def _decoded(given: Any, where: str) -> Any:
    """A prompt, with messages of another form as a list of objects."""
    if isinstance(given, Mapping) and {"role", "content"} <= given.keys():
        if isinstance(given["role"], str):
            return [given]
        # tensorflow-datasets reads a list of objects as an object of lists.
        pairs = zip(given["role"], given["content"], strict=True)
        return [{"role": role, "content": content} for role, content in pairs]
    if not isinstance(given, str) or not _MESSAGES.match(given):
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        raise ValueError(
            f"{where}: looks like chat messages, but is not JSON: {error}; write them "
            "with json.dumps"
        ) from error


def _of_messages(messages: list[Any], where: str) -> tuple[str, str]:
    """The texts of the user's and the system's message."""
    texts = []
    for number, message in enumerate(messages, start=1):
        is_message = isinstance(message, Mapping) and isinstance(
            message.get("role"), str
        )
        if not is_message or message.get("content") is None:
            raise ValueError(
                f"{where}, message {number}: expected an object with role and content, "
                f"got {message!r:.80}"
            )
        text = _text(message["content"], f"{where}, message {number}")
        texts.append((message["role"], text))
    roles = [role for role, _ in texts]
    if roles not in (["user"], ["system", "user"]):
        remedy = (
            "leave out the answer"
            if roles[-1:] == ["assistant"]
            else "write what else the model should read into the user's message"
        )
        raise ValueError(
            f"{where}: expected one message of the role user, perhaps after one of "
            f"the role system; got {', '.join(roles) or 'no message':.200}; {remedy}"
        )
    return texts[-1][1], texts[0][1] if len(texts) == 2 else ""


def _text(content: Any, where: str) -> str:
    """The text of a message; its parts are joined."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}, field content: expected text, got {content!r:.80}")
    return "".join(texts)


def with_ground_truth(row: Row, where: str) -> tuple[Row, str]:
    """The row with its ground truth under the names that tasks read, and `where`.

    Fields that the row has are not replaced. `where` tells the true name of the others.
    """
    row = _with_objects(row, where)
    name, truth = "ground_truth", row.get("ground_truth")
    if isinstance(row.get("reward_model"), Mapping):
        name = "reward_model.ground_truth"
        truth = row["reward_model"].get("ground_truth")
    for text in _GROUND_TRUTH:
        if isinstance(row.get(text), str):
            _check_encodable(row[text], f"{where}, field {text}")
    added = [other for other in _GROUND_TRUTH if row.get(other) is None]
    if truth is None or not added:
        return row, where
    where = f"{where} (with {name} as {', '.join(added)})"
    return {**row, **dict.fromkeys(added, truth)}, where


def _with_objects(row: Row, where: str) -> Row:
    """The row with objects where a table holds their JSON text."""
    objects = {}
    for name in _OBJECTS:
        # Other text has a meaning of its own, for a task that does not read these.
        text = row.get(name)
        if not isinstance(text, str) or not text.lstrip().startswith("{"):
            continue
        try:
            objects[name] = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{where}, field {name}: is not JSON: {error}") from error
    return {**row, **objects}


def _check_encodable(text: str, where: str) -> None:
    """Refuse text that no tokenizer can encode."""
    if found := files.lone_surrogate(text):
        raise ValueError(
            f"{where}: character {found.start() + 1} is U+{ord(found[0]):04X}, half "
            "of a surrogate pair, which no tokenizer can encode; remove it, or write "
            "the character that was meant"
        )
