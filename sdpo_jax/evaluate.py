"""How good a policy is: avg@k and unbiased pass@k on a split of questions."""

import contextlib
import functools
import logging
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sdpo_jax import (
    answers,
    distributed,
    inputs,
    interrupt,
    run_checkpoints,
    run_folder,
    screen,
    tables,
)
from sdpo_jax.collect import collect, drop_long_prompts, sampling_of
from sdpo_jax.components import Components, build
from sdpo_jax.config import SPLITS
from sdpo_jax.envs.base import Environment, GradedAttempt
from sdpo_jax.learner import trained_shapes
from sdpo_jax.train_state import decoder_params

# What is never trained on.
HELD_BACK = ("validation", "heldout")
_log = logging.getLogger(__name__)


def pass_at_k(num_attempts: int, num_correct: int, k: int) -> float:
    """Probability that k attempts drawn without replacement hold a correct one.

    Unbiased estimator 1 - C(n - c, k) / C(n, k)  (arXiv:2107.03374, eq. 1).

    Args:
      num_attempts: n, attempts made on one question.
      num_correct: c, attempts graded correct.
      k: attempts drawn.

    Returns:
      A probability in [0, 1].

    Raises:
      ValueError: if k exceeds num_attempts.
    """
    if k > num_attempts:
        raise ValueError(
            f"pass@{k} needs at least {k} attempts per question, got "
            f"{num_attempts}; raise eval.attempts"
        )
    missed = math.comb(num_attempts - num_correct, k)
    return 1.0 - missed / math.comb(num_attempts, k)


def run(
    c: ConfigDict,
    environment: Environment | None = None,
    workdir: str | os.PathLike | None = None,
    *,
    checkpoint: str = "last",
    path: str | os.PathLike | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate the student of a run, or the config's own checkpoint, on every split.

    Args:
      c: the run's config.
      environment: the caller's own, used instead of `config.env`'s.
      workdir: the run folder; None evaluates the base model `c.model.path` itself.
      checkpoint: of the run: "last", or "best" by validation.
      path: the folder to write every answer to, see `answers`; None for a new one in
        the run folder. Without a run folder either, nothing is written.

    Returns:
      Split ("train", "validation", "heldout") -> name -> value; without "heldout" if
      there are no such questions.

    Raises:
      ValueError: if the config, checkpoint or questions cannot work, or the base model
        of the run was replaced since it began.
      FileNotFoundError: if the run has no such checkpoint yet.
      Interrupted: if SIGTERM or Ctrl-C asked to stop; answers so far are written.
    """
    screen.show_log()
    _check(workdir, checkpoint, path)
    if workdir is not None and path is None:
        path = answers.new_folder(workdir)
    with (
        interrupt.on_signals("answers written so far are kept") as stop,
        build(c, environment, trains=False, check_stop=stop.raise_if_set) as components,
    ):
        if workdir is not None:
            _check_inputs(c, environment, workdir)
        policy, update = _policy(components, workdir, checkpoint)
        # To build and load takes minutes.
        stop.raise_if_set()
        _log.info(
            "evaluating %s%s",
            f"{workdir} after update {update}" if workdir else c.model.path,
            f"; every answer goes to {path}" if path else "",
        )
        with answers.Files(path, update) as files:
            found = _every_split(components, policy, files, stop.raise_if_set)
            files.write_results(c, found, checkpoint if workdir else None)
        return found


def _every_split(
    components: Components,
    policy: Any,
    files: answers.Files,
    check_stop: Callable[[], None],
) -> dict[str, dict[str, float]]:
    """Split -> name -> value, of every split; writes the answers and shows progress."""
    splits = _with_questions(components, SPLITS)
    sizes = {split: _planned(components, split) for split in splits}
    found = {}
    with screen.Progress(sum(sizes.values()), "answer") as shown:
        for split, size in sizes.items():
            each = functools.partial(files.write, split)
            with shown.part(size):
                found[split], graded = on_split(
                    *(components, policy, split), check_stop=check_stop, each=each
                )
            files.write_questions(split, _of_questions(components.config, graded))
    return found


def _with_questions(components: Components, splits: Sequence[str]) -> list[str]:
    """The splits to evaluate: held-out questions may be absent."""
    questions = components.environment.questions
    return [split for split in splits if split != "heldout" or questions(split)]


def splits_due(c: ConfigDict, update: int) -> Sequence[str]:
    """The splits to evaluate after an update: all for the base and after the last."""
    if update in (0, c.train.updates):
        return HELD_BACK
    return ("validation",) if update % c.train.evaluate_every == 0 else ()


def after_update(
    components: Components,
    policy: Any,
    update: int,
    timer: Callable[[str], contextlib.AbstractContextManager],
    check_stop: Callable[[], None],
) -> dict[str, float]:
    """`on_splits` of the splits that are due after an update; empty if none are."""
    splits = splits_due(components.config, update)
    if not splits:
        return {}
    # A signal during the update is heard before programs of this one are compiled.
    check_stop()
    with timer("evaluate"):
        label = f"after update {update}"
        return on_splits(components, policy, splits, label, check_stop)


def _planned(components: Components, split: str) -> int:
    """Answers at the questions of a split, before long ones are dropped."""
    of_split = components.environment.questions(split)
    how = components.config.eval
    return len(of_split[: how.max_questions or None]) * how.attempts


def _check(
    workdir: str | os.PathLike | None, checkpoint: str, path: str | os.PathLike | None
) -> None:
    """Refuse what is asked for and cannot be."""
    if checkpoint not in run_checkpoints.CHOICES:
        raise ValueError(
            f"--checkpoint={checkpoint}: must be one of "
            + " | ".join(run_checkpoints.CHOICES)
        )
    if workdir is None and checkpoint != "last":
        raise ValueError(
            f"--checkpoint={checkpoint}: only a run has these; give its --workdir"
        )
    # The first host decides: when another one looks, it may have made the folder.
    if distributed.from_first(path is not None and pathlib.Path(path).exists()):
        raise ValueError(f"{path} exists; move it away, or give another path")


def _check_inputs(
    c: ConfigDict, environment: Environment | None, workdir: str | os.PathLike
) -> None:
    """Refuse another base model than the run's; warn of other questions or graders."""
    inputs.check_model(c, workdir)
    changed = run_folder.changed_contents(workdir, inputs.contents(c, environment))
    if changed:
        _log.warning(
            "%s is evaluated with another content than it recorded:%s",
            *(workdir, "".join(changed.values())),
        )


def _policy(
    components: Components, workdir: str | os.PathLike | None, checkpoint: str
) -> tuple[Any, int]:
    """The weights to evaluate, and the update after which they were saved."""
    if workdir is None:
        return components.load_params(), 0
    shapes = trained_shapes(*components.model)
    student, update = run_checkpoints.weights(shapes, pathlib.Path(workdir), checkpoint)
    base = components.load_params() if components.config.lora.rank else None
    return decoder_params(base, student), update


def _of_questions(c: ConfigDict, graded: Sequence[GradedAttempt]) -> Iterator[dict]:
    """The numbers of each question; its attempts are adjacent."""
    n = c.eval.attempts
    for first in range(0, len(graded), n):
        of_it = graded[first : first + n]
        uid, solved = of_it[0].question.uid, int(_solved(c, of_it).sum())
        yield {"question": uid, "solved": solved, **summarise(c, of_it)}


def describe(found: Mapping[str, Mapping[str, float]], path: pathlib.Path) -> str:
    """An evaluation for a person: a table, a line per number, and the folder."""
    names = dict.fromkeys(name for of_split in found.values() for name in of_split)
    rows = [
        (name, *(tables.number(of_split.get(name)) for of_split in found.values()))
        for name in names
    ]
    table = tables.aligned([("", *found), *rows])
    return (
        f"{table}\n\nEvery answer with its verdict and feedback is in "
        f"{path}/<split>.jsonl, pass@k of every question in "
        f"{path}/<split>_questions.jsonl"
    )


def on_splits(
    components: Components,
    policy: Any,
    splits: Sequence[str],
    label: str,
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """`on_split` of several splits, as "split/name"; logged as they come.

    Held-out questions may be absent; then nothing of them is measured.

    Args:
      components: as for `on_split`.
      policy: as for `on_split`.
      splits: of "train", "validation" and "heldout".
      label: what the policy is, for the log.
      check_stop: see `collect.collect`.
    """
    values = {}
    for split in _with_questions(components, splits):
        of_split, _ = on_split(components, policy, split, check_stop=check_stop)
        values |= {f"{split}/{name}": x for name, x in of_split.items()}
        named = ", ".join(f"{name} {x:.4g}" for name, x in of_split.items())
        _log.info("%s, %s: %s", label, split, named)
    return values


def on_split(
    components: Components,
    policy: Any,
    split: str,
    *,
    check_stop: Callable[[], None] = lambda: None,
    each: Callable[[GradedAttempt], None] = lambda graded: None,
) -> tuple[dict[str, float], list[GradedAttempt]]:
    """Sample and grade `config.eval.attempts` attempts at every question of a split.

    The draws depend on the seed and the question only, so two policies are compared on
    the same random numbers.

    Args:
      components: what the config names.
      policy: weights as `decoder` reads them.
      split: "train", "validation" or "heldout".
      check_stop: see `collect.collect`.
      each: called with every graded attempt as it comes; see `collect.collect`.

    Returns:
      {"avg@n": mean score, "pass@k": ..., "length_mean": tokens, "truncated": share},
      with "dropped_questions" if there are any, and the graded attempts.
    """
    c = components.config
    every = components.environment.questions(split)
    questions = drop_long_prompts(c, components.tokenizer, every, split)
    dropped = len(every) - len(questions)
    questions = questions[: c.eval.max_questions or None]
    key = jax.random.fold_in(jax.random.key(c.seed), zlib.crc32(split.encode()))
    sampling = sampling_of(c, c.eval)
    with screen.phase(f"evaluating {split}"):
        _, graded = collect(
            *(components, policy, questions, sampling, key),
            check_stop=check_stop,
            each=each,
        )
    counted = {"dropped_questions": float(dropped)} if dropped else {}
    return summarise(c, graded) | counted, graded


def summarise(c: ConfigDict, graded: Sequence[GradedAttempt]) -> dict[str, float]:
    """Named numbers of attempts, where a question's attempts are adjacent."""
    n = c.eval.attempts
    counts = _solved(c, graded).reshape(-1, n).sum(axis=1).tolist()
    passes = {
        f"pass@{k}": float(np.mean([pass_at_k(n, count, k) for count in counts]))
        for k in c.eval.pass_at
    }
    return {
        f"avg@{n}": float(np.mean([g.score for g in graded])),
        **passes,
        "length_mean": float(np.mean([g.num_tokens for g in graded])),
        "truncated": float(np.mean([g.truncated for g in graded])),
        "grader_failures": float(sum(g.verdict is None for g in graded)),
    }


def _solved(c: ConfigDict, graded: Sequence[GradedAttempt]) -> np.ndarray:
    """Whether each attempt counts as correct."""
    return np.array([g.score >= c.reprompt.success_score for g in graded])
