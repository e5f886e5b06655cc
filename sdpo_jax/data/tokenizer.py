"""Conversion of text to token ids and back, by a Hugging Face tokenizer."""

import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from sdpo_jax import hub, thinking
from sdpo_jax.data import stop_tokens

_log = logging.getLogger(__name__)
# Llama 3.2's template writes today's date unless it is given one, so a run's prompts
# would change from one day to the next. This is the one that Llama 3.1's always writes.
_DATE = "26 Jul 2024"

# All of a checkpoint but its weights.
_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")


class Tokenizer:
    """The tokenizer of one checkpoint, with its chat template and stop tokens.

    Args:
      path: a directory, or the name of a model on the Hugging Face hub.
      enable_thinking: whether the chat template asks for a chain of thought; templates
        that have no such switch ignore it.

    Attributes:
      stop_ids: tokens that end a response: those of generation_config.json (or of
        config.json if that names none), then the tokenizer's end-of-text token.
      vocab_size: token ids are below it. The model's embedding may have more rows.

    Raises:
      ValueError: if there is no tokenizer at `path`, or it has no chat template, no
        end-of-text token, or one that is none of its tokens.
    """

    def __init__(self, path: str | os.PathLike, enable_thinking: bool = False):
        self._tokenizer, directory = _load(path)
        self._path, self._enable_thinking = path, enable_thinking
        # Tags of the reasoning stay in the text, even if they are special tokens.
        self._skipped = frozenset(
            number
            for number, token in self._tokenizer.added_tokens_decoder.items()
            if token.special and token.content not in thinking.TAGS
        )
        # Numbers may have gaps, so their count would be too low.
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
        self._stop_files = stop_tokens.stop_ids(directory, self._tokenizer)
        self.stop_ids = tuple(self._stop_files)
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"{path}: the tokenizer has no chat template; use an instruction-tuned "
                "checkpoint, or add a chat_template.jinja to the directory"
            )
        if not self.stop_ids:
            raise ValueError(
                f"{path}: neither generation_config.json nor the tokenizer names an "
                "end-of-text token, so no response would ever end"
            )
        problem = stop_tokens.turn_end_problem(
            self._tokenizer, self.stop_ids, self._after_answer()
        )
        if problem:
            _log.warning("%s: %s", path, problem)

    def check_rows(self, rows: int) -> None:
        """Refuse tokens that the embedding of a model has no row for.

        JAX would read another row in their place, in silence.

        Args:
          rows: of the embedding, `vocab_size` in config.json.

        Raises:
          ValueError: naming the file and the token.
        """
        belongs = f"the embedding has {rows} rows (vocab_size in config.json)"
        if self.vocab_size > rows:
            vocab = self._tokenizer.get_vocab()
            text = max(vocab, key=vocab.get)
            raise ValueError(
                f"{self._path}: the tokenizer (tokenizer.json) has tokens up to number "
                f"{vocab[text]}, {text!r}, but {belongs}; take the tokenizer of this "
                "checkpoint, or remove its added tokens"
            )
        for token, file in self._stop_files.items():
            if token >= rows:
                raise ValueError(
                    f"{self._path}: {file} names the stop token {token}, but "
                    f"{belongs}; correct it, or take the {file} of this checkpoint"
                )

    def _after_answer(self) -> str:
        """What the chat template writes after an assistant's message."""
        import jinja2  # As slow to import as transformers, which needs it.

        answer = "qzxj"  # No template writes this text by itself.
        messages = [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": answer},
        ]
        try:
            text = self._lay_out(messages, tokenize=False)
        except (jinja2.TemplateError, TypeError):
            return ""  # It cannot write such a dialogue, so it says nothing of one.
        _, found, after = text.rpartition(answer)
        return after if found else ""

    def encode_chat(self, system: str, user: str) -> list[int]:
        """Token ids of a chat up to the assistant's turn.

        An empty system message is left out. Special tokens that are written in the
        messages are encoded as such: see `inert`.
        """
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": user})
        return self._lay_out(messages, add_generation_prompt=True, return_dict=False)

    def _lay_out(self, messages: list[dict[str, str]], **options: Any) -> Any:
        """Messages as the chat template writes them."""
        return self._tokenizer.apply_chat_template(
            messages,
            enable_thinking=self._enable_thinking,
            date_string=_DATE,
            **options,
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: special tokens are neither added nor recognised."""
        return self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens; negative ids are padding.

        The tags of the reasoning are kept.
        """
        return self._tokenizer.decode(
            [int(i) for i in ids if i >= 0 and int(i) not in self._skipped],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )

    def inert(self, text: str) -> str:
        """Untrusted text, changed so that it encodes to no special token of the chat.

        Every special or added token written in it gets a space after its first
        character, so that `<|im_end|>` reads `< |im_end|>`; other text is unchanged.
        """
        separator = " "
        while starts := self._added_tokens(text):
            for start in reversed(starts):
                # What a space does not break loses its first character instead, so
                # each further round makes the text shorter, and the rounds end.
                first = text[start] + separator if separator else ""
                text = text[:start] + first + text[start + 1 :]
            separator = ""
        return text

    def _added_tokens(self, text: str) -> list[int]:
        """Offsets of the special or added tokens that the tokenizer finds in text."""
        added = self._tokenizer.added_tokens_decoder
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True
        )
        starts = []
        spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        for token, (start, end) in spans:
            # A token may include spaces before it; one of spaces only is plain text.
            word = text[start:end].lstrip()
            if token in added and word:
                starts.append(end - len(word))
        return starts


def _load(path: str | os.PathLike):
    """The tokenizer, and the directory of its checkpoint."""
    # Without torch, transformers advises to install it; this project does not need it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers  # Takes more than a second, so only where text is encoded.

    try:
        directory = path if os.path.isdir(path) else hub.model(str(path), *_FILES)
        # The trainer checks lengths itself; transformers would warn of long texts.
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, model_max_length=sys.maxsize
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: no tokenizer could be loaded ({reason})") from error
    return tokenizer, pathlib.Path(directory)
