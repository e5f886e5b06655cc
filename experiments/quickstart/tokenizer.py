"""The tokenizer of the quickstart's base model.

The task's words, numbers and sentences are one token each; all other characters fall
back to their bytes, so decoding restores any text exactly.
"""

import json
import pathlib

import tokenizers
from tokenizers import decoders, models

from experiments.quickstart import task

SIZE = 640  # A multiple of 8, so that a mesh can split it; numbers reach 200.
STOP = "<|im_end|>"
SPECIAL = ("<|endoftext|>", "<|im_start|>", STOP)
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] != 'system' or message['content'] %}"
    "{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{{- message['content'] + '<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- endif %}"
)

CHAT = ("system\n", "user\n", "assistant\n", "\n", "\n\n", " ", ", ")
PROGRAM = (
    *("```", "```python\n", "def solve(x):\n", "    return [", "]\n```", "]", "["),
    *("x", " + ", " - ", " * ", " // ", " % ", "def ", "solve", "(x)", "return "),
    *("print(", "(", ")", ":", "=", " = ", ".", "'", '"', "-", "+", "*", "/", "%"),
)
REPROMPT = (
    "\nCorrect solution:\n\n",
    "\nYour earlier attempt:\n\n",
    "\nThe following is feedback from your unsuccessful earlier attempt:\n\n",
    "\n\nCorrectly solve the original question.",
)
FEEDBACK = (
    *("Test Case ", ": Wrong Answer\nInput\n", "\nOutput\n", "\nExpected\n", "null"),
    "Incorrect Format: Put your code inside a ```python ... ``` block.",
    "Truncated Attempt: Your previous response was too long and was cut off before it "
    "ended. Try again with a shorter response.",
    "Time Limit Exceeded\n",
    *("Runtime Error\n", "NameError: name '", "' is not defined\n", "TypeError: "),
    *("SyntaxError: ", "invalid syntax", ". Perhaps you forgot a comma?", "\nLine "),
    *("'[' was never closed", "unmatched ']'", "ZeroDivisionError: ", "return ["),
    *(" in solve (Solution.py)", " in <module> (Solution.py)"),
    "\nLast Executed Input\n",
)
# Without these a text such as "<0x0A>", the name of a byte piece, would become that
# byte.
SPELLING = tuple("<>ABCDEF0123456789")


def pieces() -> list[str]:
    """Every piece with a meaning in the task; integers fill the vocabulary."""
    words = (*task.MADE_UP, *task.KNOWN, *task.OPERATIONS, task.REQUEST)
    named = dict.fromkeys((*words, *CHAT, *PROGRAM, *REPROMPT, *FEEDBACK, *SPELLING))
    room = SIZE - len(SPECIAL) - len(BYTES) - len(named)
    return [*named, *(str(number) for number in range(10, 10 + room))]


def build() -> tokenizers.Tokenizer:
    """The tokenizer: splits a text into the fewest pieces, bytes as a last resort."""
    # Special tokens are not among the pieces, so text cannot be read as one.
    vocabulary = [
        *((piece, -1e4) for piece in BYTES),
        *((piece, -1.0) for piece in pieces()),
    ]
    unigram = models.Unigram(vocabulary, unk_id=0, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(unigram)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def save(folder: pathlib.Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json."""
    tokenizer = build()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": STOP,
        "pad_token": SPECIAL[0],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", config)
    generation = {
        "eos_token_id": [tokenizer.token_to_id(STOP)],
        "pad_token_id": tokenizer.token_to_id(SPECIAL[0]),
    }
    _write_json(folder / "generation_config.json", generation)


def _write_json(file: pathlib.Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
