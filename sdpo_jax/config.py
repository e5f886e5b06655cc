"""Every knob of a run: its default, what it may be and its meaning, in one place.

A run file's `get_config()` changes what differs:

  from sdpo_jax import config

  def get_config():
      c = config.default()
      c.model.path = "Qwen/Qwen3-8B"
      return c

Defaults are those of the SDPO paper (arXiv:2601.20802, Table 12, without rich
feedback) and of its code. Feedback is shown where an environment has any; the paper's
runs without rich feedback set `reprompt.show_feedback` to "never".
`python -m sdpo_jax.main --help` prints all of this.
"""

import difflib
import json
import os
import pathlib
import runpy
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from sdpo_jax.knobs import Knob, choice, flag, names, number, numbers, text

SPLITS = ("train", "validation", "heldout")

# A method and its own knobs.
METHODS = {
    "sdpo": {
        "divergence": choice(
            "jensen_shannon",
            "forward_kl | reverse_kl | jensen_shannon",
            "of the student from the self-teacher",
        ),
        "mixture": number(
            0.5,
            "(0, 1)",
            "the teacher's share of the Jensen-Shannon mixture; for its ends set "
            "sdpo.divergence to forward_kl or reverse_kl",
        ),
        "support": choice(
            "top_k",
            "full | top_k | sampled_token",
            "the tokens over which the divergence sums",
        ),
        "top_k": number(100, "[1, 2^20]", "the student's most likely tokens"),
        "keep_tail": flag(True, "one bucket for the rest; else renormalise"),
        "importance_ratio_cap": number(2.0, "[1, 10^9]", "on pi / pi_old"),
    },
    "grpo": {
        "clip_low": number(0.2, "(0, 1]", "of the ratio pi / pi_old, below 1"),
        "clip_high": number(0.28, "(0, 10^9]", "of the ratio pi / pi_old, above 1"),
        "dual_clip": number(
            3.0, "(1, 10^9]", "most loss of a token, times a negative |A|"
        ),
        "normalize_std": flag(False, "divide advantages by their group's deviation"),
    },
}

# A task and its own knobs, for tasks that have any.
_TASKS = {
    "programming": {
        "process_per": choice("test", "test | program", "what has its own process"),
        "packages": names(("numpy",), "installed modules that programs can import"),
        "wrong_answers_shown": number(2, "[1, 100]", "failed tests in one feedback"),
        "feedback_reveals": choice(
            "expected",
            "inputs | outputs | expected",
            "of failed tests, each with those before it",
        ),
    },
    "judge": {
        "url": text("", "of the endpoint, up to and without /chat/completions"),
        "model": text("", "as the endpoint calls it"),
    },
    "function": {"grade": text("", "module:name of the function that grades")},
}

_FIELDS = {
    "method": choice("sdpo", " | ".join(METHODS), "what the student learns from"),
    "seed": number(0, "[0, 2^31)", "of questions' order, sampling and demonstrations"),
    "model": {
        "path": text("", "a Hugging Face folder or hub id"),
        "dtype": choice(
            "auto", "auto | float32 | bfloat16", "of computation; auto by device"
        ),
        "attention": choice("auto", "auto | xla | splash | cudnn", "auto by device"),
        "remat": choice("none", "none | layer", "what the backward pass computes anew"),
        "enable_thinking": flag(False, "handed to the chat template"),
    },
    "env": {
        "name": text("programming", "of envs.TASKS; empty for an object of your own"),
        "train": text(
            "", "questions: a file, hf:NAME?split=train, tfds:..., seeds:0-99"
        ),
        "validation": text("", "chooses the best checkpoint; share:0.1 of env.train"),
        "heldout": text("", "reported, never chosen on; or a share of env.train"),
        "grader": choice(
            "fixed", "fixed | official", "official: as the published code scores"
        ),
        "sandbox": {
            "tier": choice(
                "auto",
                "auto | A | B | C | D | URL",
                "isolation of programs; the URL of a sandbox.server",
            ),
            "time_limit_s": number(
                6.0, "(0, 3600]", "CPU seconds per test or comparison"
            ),
            "memory_limit_mb": number(1024, "[16, 2^20]", "MiB per program"),
        },
        **_TASKS,
    },
    "rollout": {
        "questions": number(32, "[1, 2^20]", "per rollout batch"),
        "attempts": number(8, "[1, 2^16]", "per question"),
        "temperature": number(1.0, "(0, 100]", "of the softmax that is sampled from"),
        "top_p": number(1.0, "(0, 1]", "probability of the tokens that are kept"),
        "top_k": number(0, "[0, 2^31)", "tokens kept; 0 keeps the whole vocabulary"),
        "max_prompt": number(2048, "[1, 2^24]", "tokens"),
        "long_prompts": choice("refuse", "refuse | drop", "questions that take more"),
        "max_response": number(8192, "[1, 2^24]", "tokens"),
        "rows_at_once": number(
            256, "[1, 2^20]", "attempts sampled together, all devices"
        ),
    },
    "curriculum": {
        "min_pass_rate": number(
            0.0, "[0, 1]", "a question solved less often sits out turns"
        ),
        "max_pass_rate": number(
            1.0, "[0, 1]", "a question solved more often sits out turns"
        ),
    },
    "reprompt": {
        "success_score": number(1.0, "(0, 1]", "solved from here on; actor.yaml: 0.5"),
        "demonstration_from": choice(
            "peers",
            "peers | own_if_solved | any_attempt | nobody",
            "whose solution the teacher of an attempt is shown",
        ),
        "show_feedback": choice(
            "without_solution",
            "never | without_solution | always",
            "when the teacher is shown the environment's feedback",
        ),
        "show_attempt": flag(False, "the attempt itself, before its feedback"),
        "strip_thinking": flag(True, "drop <think> blocks of demonstrations"),
        "max_length": number(
            10240, "[1, 2^24]", "tokens; what is shown is cut in the middle"
        ),
        "template": text(
            "{prompt}{solution}{attempt}{feedback}"
            "\n\nCorrectly solve the original question.",
            "of the whole turn that the teacher reads",
        ),
        "solution_template": text(
            "\nCorrect solution:\n\n{solution}", "of a demonstration"
        ),
        "feedback_template": text(
            "\nThe following is feedback from your unsuccessful earlier attempt:"
            "\n\n{feedback}",
            "of the environment's feedback",
        ),
    },
    **METHODS,
    "teacher": {
        "mode": choice(
            "ema", "ema | trust_region | frozen | live", "how it follows the student"
        ),
        "rate": number(0.05, "[0, 1]", "of the average, per update of the teacher"),
        "mixture": number(0.05, "[0, 1]", "the live student's share in a trust region"),
        "update_per": choice(
            "rollout_batch", "rollout_batch | optimizer_step", "when the average moves"
        ),
    },
    "lora": {
        "rank": number(0, "[0, 2^16]", "of the adapters; 0 trains all weights"),
        "alpha": number(32.0, "(0, 2^16]", "changes are scaled by alpha / rank"),
    },
    "optimizer": {
        "learning_rate": number(1e-5, "(0, 1]", "of AdamW, after the warm-up"),
        "schedule": choice("constant", "constant | cosine", "after the warm-up"),
        "warmup_updates": number(10, "[0, 2^31)", "rollout batches"),
        "weight_decay": number(0.01, "[0, 1]", "of AdamW"),
        "clip_norm": number(1.0, "(0, 10^9]", "of the whole gradient"),
    },
    "step": {
        "questions": number(32, "[1, 2^20]", "of one optimiser step"),
        "micro_batch": number(
            0, "[0, 2^20]", "rows per device at a time; 0 takes all at once"
        ),
        "chunk": number(
            512, "[1, 2^20]", "response positions whose logits exist at once"
        ),
        "aggregation": choice(
            "token_mean",
            "token_mean | sequence_mean | sequence_mean_all_rows",
            "of token losses; see aggregation.token_weights",
        ),
        "sampler_ratio_cap": number(2.0, "[1, 10^9]", "on pi_old / pi_sampler"),
    },
    "mesh": {
        "data": number(
            1, "{-1} | [1, 2^20]", "cuts rows; -1 takes what other axes leave"
        ),
        "fsdp": number(-1, "{-1} | [1, 2^20]", "cuts rows and weights; -1 as above"),
        "tensor": number(
            1, "{-1} | [1, 2^20]", "cuts heads and vocabulary; -1 as above"
        ),
    },
    "train": {
        "updates": number(100, "[1, 2^31)", "rollout batches"),
        "evaluate_every": number(
            5, "[1, 2^31)", "updates; the last is always evaluated"
        ),
        "save_every": number(5, "[1, 2^31)", "updates; the last is always saved"),
    },
    "eval": {
        "attempts": number(16, "[1, 2^16]", "per question"),
        "temperature": number(0.6, "[0, 100]", "as in rollout; 0 takes the likeliest"),
        "top_p": number(0.95, "(0, 1]", "as in rollout"),
        "top_k": number(0, "[0, 2^31)", "as in rollout"),
        "pass_at": numbers((1,), "[1, 2^16]", "the k of pass@k"),
        "max_questions": number(0, "[0, 2^31)", "the first of each split; 0 takes all"),
    },
}


def _flat_knobs(fields: Mapping, prefix: str = "") -> dict[str, Knob]:
    knobs = {}
    for name, field in fields.items():
        if isinstance(field, Knob):
            knobs[prefix + name] = field
        else:
            knobs |= _flat_knobs(field, f"{prefix}{name}.")
    return knobs


# Dotted field -> its knob.
KNOBS = _flat_knobs(_FIELDS)


def default() -> ConfigDict:
    """The locked config of a run, before anything is changed."""
    return _defaults(_FIELDS).lock()


def _defaults(fields: Mapping) -> ConfigDict:
    c = ConfigDict()
    for name, field in fields.items():
        c[name] = field.default if isinstance(field, Knob) else _defaults(field)
    return c


def describe() -> str:
    """Every field with its default, what it may be and its meaning."""
    return "\n".join(
        f"  --config.{field}={knob.default!r} ({knob.allowed})\n    {knob.meaning}"
        for field, knob in KNOBS.items()
    )


def validate(c: ConfigDict) -> None:
    """Refuse what cannot work, before anything is read or compiled.

    What depends on the task or the method they check themselves: see
    `components.validate`.

    Raises:
      ValueError: one line that names the field, its value and what to change.
    """
    for field, knob in KNOBS.items():
        knob.check(field, get(c, field))
    _check_combinations(c)
    if c.curriculum.min_pass_rate > c.curriculum.max_pass_rate:
        raise ValueError(
            f"curriculum.min_pass_rate={c.curriculum.min_pass_rate} exceeds "
            f"curriculum.max_pass_rate={c.curriculum.max_pass_rate}"
        )


def from_run(folder: str | os.PathLike) -> ConfigDict:
    """The config that a run folder was trained with.

    Raises:
      ValueError: if the folder holds none, or one with unknown fields.
    """
    file = pathlib.Path(folder) / "config.json"
    if not file.exists():
        raise ValueError(f"{folder} is no run folder: it has no config.json")
    c = default()
    known, fields = flat(c), json.loads(file.read_text())
    for field, value in fields.items():
        if field not in known:
            near = nearest(field, known)
            raise ValueError(f"{file}: {field} is no config field; nearest: {near}")
        # JSON made lists of tuples.
        if isinstance(known[field], tuple):
            fields[field] = tuple(value)
    c.update_from_flattened_dict(fields)
    return c


def from_file(path: str | os.PathLike) -> ConfigDict:
    """The config of a run file, for another one that changes a few fields of it."""
    return runpy.run_path(os.fspath(path))["get_config"]()


def _check_combinations(c: ConfigDict) -> None:
    """What is wrong only together."""
    if not c.model.path:
        raise ValueError("model.path is empty: give a Hugging Face folder or hub id")
    if c.rollout.questions % c.step.questions:
        raise ValueError(
            f"rollout.questions={c.rollout.questions} is not a multiple of "
            f"step.questions={c.step.questions}"
        )
    if c.reprompt.max_length <= c.rollout.max_prompt:
        raise ValueError(
            f"reprompt.max_length={c.reprompt.max_length} leaves no room beside a "
            f"question of rollout.max_prompt={c.rollout.max_prompt} tokens; raise it"
        )
    if c.rollout.rows_at_once < c.rollout.attempts:
        raise ValueError(
            f"rollout.rows_at_once={c.rollout.rows_at_once} holds no whole question of "
            f"rollout.attempts={c.rollout.attempts}; raise it"
        )
    too_many = [k for k in c.eval.pass_at if not 1 <= k <= c.eval.attempts]
    if too_many:
        raise ValueError(
            f"eval.pass_at={tuple(c.eval.pass_at)}: pass@k needs 1 <= k <= "
            f"eval.attempts={c.eval.attempts}"
        )


def get(c: ConfigDict, field: str):
    """The value of a dotted field."""
    for part in field.split("."):
        c = c[part]
    return c


def flat(c: Mapping, prefix: str = "") -> dict:
    """Every dotted field and its value."""
    fields = {}
    for name, value in c.items():
        if isinstance(value, (ConfigDict, dict)):
            fields.update(flat(value, f"{prefix}{name}."))
        else:
            fields[prefix + name] = value
    return fields


def nearest(field: str, fields: Iterable[str]) -> str:
    """The known field that a mistyped one most resembles."""
    fields = list(fields)
    same_leaf = [f for f in fields if f.split(".")[-1] == field.split(".")[-1]]
    return difflib.get_close_matches(field, same_leaf or fields, n=1, cutoff=0.0)[0]
