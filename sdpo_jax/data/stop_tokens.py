"""Which tokens end a response, by the files of a checkpoint."""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any


def stop_ids(directory: pathlib.Path, tokenizer: Any) -> dict[int, str]:
    """Tokens that end a response, each with the file that names it.

    They are those of generation_config.json or, as in transformers, those of
    config.json where it names none; then the tokenizer's end-of-text token.

    Raises:
      ValueError: if a file names what is no token.
    """
    named: dict[int, str] = {}
    for name in ("generation_config.json", "config.json"):
        named = named or dict.fromkeys(_named(directory / name, tokenizer), name)
    if tokenizer.eos_token_id is not None:
        named.setdefault(tokenizer.eos_token_id, "tokenizer_config.json")
    return named


def _named(file: pathlib.Path, tokenizer: Any) -> list[int]:
    """The end-of-text tokens that a file names."""
    if not file.exists():
        return []
    try:
        named = json.loads(file.read_text()).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} holds no JSON object: {error}") from error
    if named is None:
        return []
    entries = named if isinstance(named, list) else [named]
    return [_token_id(entry, file, tokenizer) for entry in entries]


def _token_id(entry: Any, file: pathlib.Path, tokenizer: Any) -> int:
    """A token's number, which a file may give as the token's text."""
    if isinstance(entry, int) and not isinstance(entry, bool) and entry >= 0:
        return entry
    # Only special tokens: "7" is meant as a number, but is a token of plain text.
    special = {str(t): n for n, t in tokenizer.added_tokens_decoder.items()}
    if isinstance(entry, str) and entry in special:
        return special[entry]
    raise ValueError(
        f"{file}: eos_token_id holds {entry!r}, which is neither a token's number nor "
        "the text of one of the tokenizer's special tokens"
    )


def turn_end_problem(tokenizer: Any, stops: Sequence[int], after: str) -> str | None:
    """What to tell the user if an assistant's turn ends with no stop token.

    Args:
      tokenizer: of transformers.
      stops: tokens that end a response.
      after: what the chat template writes after an assistant's message.
    """
    text = _turn_end(tokenizer, after.strip())
    token = tokenizer.get_vocab().get(text)
    if text is None or token in stops:
        return None
    fault, remedy = "no token of the tokenizer", "take the tokenizer of this checkpoint"
    if token is not None:
        fault = f"no stop token ({token})"
        remedy = f"add {token} to eos_token_id in generation_config.json"
    names = map(str, tokenizer.convert_ids_to_tokens(list(stops)))
    return (
        f"the chat template ends a turn with {text!r}, which is {fault}, and only "
        f"{' or '.join(names)} ends a response, so responses may run on to "
        f"rollout.max_response; {remedy}"
    )


def _turn_end(tokenizer: Any, after: str) -> str | None:
    """The special token that a text begins with, or what looks like one."""
    special = map(str, tokenizer.added_tokens_decoder.values())
    if starts := [token for token in special if token and after.startswith(token)]:
        return max(starts, key=len)
    looks_special = re.match("<[^>]+>", after)
    return looks_special and looks_special[0]
