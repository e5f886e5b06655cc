"""The training loop, top to bottom: questions -> attempts -> batch -> update -> log.

From a notebook:

  from sdpo_jax import config, train

  c = config.default()
  c.model.path = "Qwen/Qwen3-0.6B"
  summary = train.run(c, "runs/mine", environment=MyEnvironment())
"""

import contextlib
import functools
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from sdpo_jax import (
    config,
    distributed,
    evaluate,
    feedback,
    inputs,
    interrupt,
    metrics,
    provenance,
    run_folder,
    screen,
    summary,
    tracker,
)
from sdpo_jax.collect import collect, pass_rates, sampling_of, training_questions
from sdpo_jax.components import Components, build, validate
from sdpo_jax.envs.base import Environment
from sdpo_jax.learner import Learner, trained_shapes
from sdpo_jax.questions import curriculum
from sdpo_jax.run_checkpoints import Progress, RunCheckpoints

_SHOWN = ("loss", "rollout/score", "validation/pass@1")
_log = logging.getLogger(__name__)


def run(
    c: ConfigDict,
    workdir: str | pathlib.Path,
    environment: Environment | None = None,
    may_change: Sequence[str] = (),
    wandb_project: str | None = None,
) -> dict[str, Any]:
    """Train, or continue training, and return the summary of the run.

    The same call on an unfinished run resumes it, to the bit; on a finished one it
    returns the summary that is there. On a pod every host makes it, after
    `distributed.start` or `jax.distributed.initialize`.

    Args:
      c: the run's config.
      workdir: the run folder.
      environment: the caller's own, used instead of `config.env`'s.
      may_change: dotted config fields that may differ from an earlier part of the run.
      wandb_project: the metrics are also sent there; None for no wandb at all.

    Returns:
      What `summary.json` holds.

    Raises:
      ValueError: if the config, checkpoint, questions or folder cannot work.
      FloatingPointError: if a loss or gradient is not finite; the state before is
        saved.
      Interrupted: if SIGTERM or Ctrl-C asked to stop; the state is saved.
    """
    screen.show_log()
    validate(c)
    tracker.check(wandb_project)
    folder = pathlib.Path(workdir)
    contents = functools.partial(inputs.contents, c, environment)
    with run_folder.claim(workdir, c, may_change, contents) as finished:
        if finished is not None:
            _log.info("%s is finished; nothing to do", folder)
            return finished
        _log.info(
            "%s: %d updates of %d attempts on %s, which begin with compiling; the "
            "first one tells how long they take. Ctrl-C saves and stops",
            *(folder, c.train.updates, c.rollout.questions * c.rollout.attempts),
            c.model.path,
        )
        with (
            interrupt.on_signals() as stop,
            build(c, environment, check_stop=stop.raise_if_set) as components,
        ):
            return _train(components, folder, stop.raise_if_set, wandb_project)


def _train(
    components: Components,
    folder: pathlib.Path,
    check_stop: Callable[[], None],
    wandb_project: str | None,
) -> dict[str, Any]:
    c = components.config
    versions = getattr(components.environment, "versions", None)
    provenance.write_once(folder, config.flat(c), components.mesh.shape, versions)
    questions, dropped = training_questions(components)
    timer = metrics.Timer()
    with contextlib.ExitStack() as exits:
        checkpoints = exits.enter_context(RunCheckpoints(c, folder))
        trained, progress = checkpoints.restore(trained_shapes(*components.model))
        learner = Learner(*components.model, components.load_params, trained)
        # To build and load takes minutes, in which there is nothing to lose.
        check_stop()
        _log.info(
            "%s: %s, update %d of %d",
            *(folder, learner.description(), progress.update, c.train.updates),
        )
        log = metrics.RunLog(
            folder,
            num_steps=c.train.updates,
            resume_from=None if trained is None else progress.update,
            shown=_SHOWN,
            wandb_project=wandb_project,
            config=config.flat(c),
        )
        exits.callback(log.close)
        # The line is missing for a base that is not measured yet, and for an update
        # that was saved and then stopped in its evaluation.
        progress.is_logged = distributed.from_first(log.last_step) == progress.update
        if trained is None:
            progress.values = dropped

        while True:
            with checkpoints.keep(learner, progress):
                if not progress.is_logged:
                    scores = evaluate.after_update(
                        components, learner.policy, progress.update, timer, check_stop
                    )
                    # Before the line: with it, a resumed run does not evaluate again.
                    checkpoints.set_score(progress, scores)
                    log.write_metrics(progress.update, progress.values | scores)
                    log.write_timings(progress.update, timer.take())
                    progress.is_logged = True
                check_stop()
                if progress.update == c.train.updates:
                    return summary.write(
                        components, folder, learner, checkpoints, check_stop
                    )
                # Of the update alone: a resumed run draws what it would have drawn.
                key = jax.random.fold_in(jax.random.key(c.seed), progress.update)
                choice = curriculum.choose(
                    c, questions, progress.update, progress.known
                )
                attempts, graded = collect(
                    components,
                    learner.policy,
                    choice.questions,
                    sampling_of(c, c.rollout),
                    key,
                    timer=timer,
                    check_stop=check_stop,
                )
                with timer("grade"):
                    batch, records, values = feedback.make_batch(
                        c, components.tokenizer, attempts, graded, progress.update
                    )
                check_stop()
            # Before the update: a loss that is not finite leaves its transcripts.
            log.write_attempts(progress.update + 1, records)
            with (
                timer("train"),
                screen.phase("training"),
                checkpoints.refuse_not_finite(learner, progress),
            ):
                values |= learner.update(batch)
            known = choice.state.measured(pass_rates(c, graded))
            values |= choice.values
            progress = Progress(progress.update + 1, known, values, is_logged=False)
            # Before the evaluation, so that nothing is lost with it.
            is_evaluated = bool(evaluate.splits_due(c, progress.update))
            checkpoints.save_if_due(learner.state, progress, is_evaluated)
