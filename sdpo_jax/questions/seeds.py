"""Questions drawn from seeds: `env.train="seeds:0-9999"` instead of a file."""

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
    """The questions of every split; what is held out is asked nowhere else.

    Two seeds may draw the same prompt. Those that "heldout" asks are dropped from
    "validation", and those that either asks from "train"; how many is logged.

    Args:
      sources: split -> "seeds:FIRST-LAST", with the last seed included.
      draw: the question of a seed, which nothing else decides.

    Raises:
      ValueError: if seeds are malformed or shared, or a split is left empty.
    """
    seeds = {split: _seeds(split, sources[split]) for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        if max(seeds[one][0], seeds[other][0]) <= min(seeds[one][-1], seeds[other][-1]):
            raise ValueError(
                f"env.{one}={sources[one]} and env.{other}={sources[other]} share "
                "seeds; give each split its own"
            )
    kept, elsewhere = {}, set()
    for split in reversed(SPLITS):
        drawn = [draw(seed) for seed in seeds[split]]
        kept[split] = [q for q in drawn if q.prompt not in elsewhere]
        _tell(split, drawn, kept[split])
        elsewhere |= {q.prompt for q in kept[split]}
    return kept


def _seeds(split: str, source: str) -> range:
    numbers = _SEEDS.fullmatch(source)
    first, last = map(int, numbers.groups()) if numbers else (1, 0)
    if first > last:
        raise ValueError(
            f"env.{split}={source!r}: expected seeds:FIRST-LAST, such as seeds:0-9999"
        )
    return range(first, last + 1)


def _tell(split: str, drawn: list[Question], kept: list[Question]) -> None:
    if not kept:
        raise ValueError(f"env.{split}: every prompt is one of a split held out more")
    if dropped := len(drawn) - len(kept):
        _log.warning(
            "env.%s: %d of %d seeds draw a prompt of a split held out more, and are "
            "dropped",
            *(split, dropped, len(drawn)),
        )
    if repeated := len(kept) - len({q.prompt for q in kept}):
        _log.warning("env.%s repeats %d of its prompts", split, repeated)
