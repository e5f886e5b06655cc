"""Questions generated from seeds: `env.train="seeds:0-9999"` instead of a file."""

import itertools
import logging
import re
from collections.abc import Callable, Mapping

from sdpo_jax.config import SPLITS
from sdpo_jax.questions.question import Question

_SEEDS = re.compile(r"seeds:([0-9]{1,9})-([0-9]{1,9})")
_log = logging.getLogger(__name__)


def load_splits(
    sources: Mapping[str, str], draw: Callable[[int], Question]
) -> dict[str, list[Question]]:
    """The questions of every split, with held-out prompts in no other split.

    Two seeds may draw the same prompt. Prompts of "heldout" are dropped from
    "validation", and prompts of either from "train". Logs how many were dropped.

    Args:
      sources: split -> "seeds:FIRST-LAST", with the last seed included; empty for a
        split without questions.
      draw: the question of a seed; must be a pure function.

    Raises:
      ValueError: if a source is malformed, two splits share seeds, or a split is left
        empty.
    """
    given = [split for split in SPLITS if sources[split]]
    seeds = {split: _seeds(split, sources[split]) for split in given}
    for one, other in itertools.combinations(given, 2):
        if max(seeds[one][0], seeds[other][0]) <= min(seeds[one][-1], seeds[other][-1]):
            raise ValueError(
                f"env.{one}={sources[one]} and env.{other}={sources[other]} share "
                "seeds; give each split its own"
            )
    kept, held_out_prompts = {split: [] for split in SPLITS}, set()
    # The most strictly held-out split comes first, so that it keeps all of its prompts.
    for split in reversed(given):
        drawn = [draw(seed) for seed in seeds[split]]
        kept[split] = [q for q in drawn if q.prompt not in held_out_prompts]
        _check_split(split, drawn, kept[split])
        held_out_prompts |= {q.prompt for q in kept[split]}
    return kept


def _seeds(split: str, source: str) -> range:
    match = _SEEDS.fullmatch(source)
    first, last = map(int, match.groups()) if match else (1, 0)
    if first > last:
        raise ValueError(
            f"env.{split}={source!r}: expected seeds:FIRST-LAST, such as seeds:0-9999"
        )
    return range(first, last + 1)


def _check_split(split: str, drawn: list[Question], kept: list[Question]) -> None:
    """Warn about dropped and repeated prompts; raise if no question is left."""
    if not kept:
        raise ValueError(
            f"env.{split}: every seed has a prompt of a split held out from it"
        )
    if dropped := len(drawn) - len(kept):
        _log.warning(
            "env.%s: dropped %d of %d seeds with a prompt of a split held out from it",
            *(split, dropped, len(drawn)),
        )
    if repeated := len(kept) - len({q.prompt for q in kept}):
        _log.warning("env.%s repeats %d of its prompts", split, repeated)
