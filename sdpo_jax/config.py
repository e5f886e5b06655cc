"""All config fields of a run, each with its default, allowed values and meaning.

A run file's `get_config()` changes only what differs:

  from sdpo_jax import config

  def get_config():
      c = config.default()
      c.model.path = "Qwen/Qwen3-8B"
      return c

Defaults are those of the SDPO paper (arXiv:2601.20802, Table 12, without rich
feedback) and of its code. Environment feedback, if any, is shown to the teacher; the
paper's runs without rich feedback set `reprompt.show_feedback` to "never".
`python -m sdpo_jax.main --help` prints all fields.
"""

import difflib
import json
import os
import pathlib
import runpy
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from sdpo_jax import templates
from sdpo_jax.knobs import Knob, choice, flag, names, number, numbers, text
from sdpo_jax.templates import template

SPLITS = ("train", "validation", "heldout")

# Method -> its own knobs.
METHODS = {
    "sdpo": {
        "divergence": choice(
            "jensen_shannon",
            "forward_kl | reverse_kl | jensen_shannon",
            "from the student's distribution to the self-teacher's",
        ),
        "mixture": number(
            0.5,
            "(0, 1)",
            "weight of the teacher in jensen_shannon; for its limits 0 and 1 set "
            "sdpo.divergence to forward_kl or reverse_kl",
        ),
        "support": choice(
            "top_k",
            "full | top_k | sampled_token",
            "tokens over which the divergence is summed",
        ),
        "top_k": number(100, "[1, 2^20]", "the student's likeliest tokens"),
        "keep_tail": flag(True, "count all other tokens as one; else renormalise"),
        "importance_ratio_cap": number(2.0, "[1, 10^9]", "maximum of pi / pi_old"),
    },
    "grpo": {
        "clip_low": number(0.2, "(0, 1]", "clip pi / pi_old below 1 - clip_low"),
        "clip_high": number(0.28, "(0, 10^9]", "clip pi / pi_old above 1 + clip_high"),
        "dual_clip": number(
            3.0, "(1, 10^9]", "maximum loss of a token with advantage A < 0, times |A|"
        ),
        "normalize_std": flag(False, "divide advantages by their group's deviation"),
    },
}

# Task -> its own knobs, for tasks that have any.
_TASKS = {
    "programming": {
        "process_per": choice("test", "test | program", "how often a process starts"),
        "packages": names(("numpy",), "installed modules that programs can import"),
        "wrong_answers_shown": number(2, "[1, 100]", "failed tests in one feedback"),
        "feedback_reveals": choice(
            "expected",
            "inputs | outputs | expected",
            "shown of failed tests; each value includes those before it",
        ),
    },
    "judge": {
        "url": text("", "base URL of the endpoint, without /chat/completions"),
        "model": text("", "name of the model at the endpoint"),
    },
    "function": {"grade": text("", "module:name of the function that grades")},
}

_FIELDS = {
    "method": choice("sdpo", " | ".join(METHODS), "training method"),
    "seed": number(0, "[0, 2^31)", "of question order, sampling and demonstrations"),
    "model": {
        "path": text("", "Hugging Face folder or hub id"),
        "dtype": choice(
            "auto", "auto | float32 | bfloat16", "of computation; auto by device"
        ),
        "attention": choice(
            "auto", "auto | xla | splash | cudnn", "kernel; auto by device"
        ),
        "remat": choice("none", "none | layer", "what the backward pass recomputes"),
        "enable_thinking": flag(False, "passed to the chat template"),
    },
    "env": {
        "name": text(
            "programming",
            "task in envs.TASKS; empty for an environment passed to train.run",
        ),
        "train": text(
            "", "questions: a file, hf:NAME?split=train, tfds:... or seeds:0-99"
        ),
        "validation": text(
            "", "questions that choose the best checkpoint; share:0.1 of env.train"
        ),
        "heldout": text(
            "", "questions for reporting only; share:0.1 of env.train; empty for none"
        ),
        "grader": choice(
            "fixed", "fixed | official", "official scores as the published code"
        ),
        "sandbox": {
            "tier": choice(
                "auto",
                "auto | A | B | C | D | URL",
                "isolation of programs, or the URL of a sandbox.server",
            ),
            "time_limit_s": number(
                6.0, "(0, 3600]", "CPU seconds per test or comparison"
            ),
            "memory_limit_mb": number(1024, "[16, 2^20]", "MiB per program"),
        },
        **_TASKS,
    },
    "rollout": {
        "questions": number(32, "[1, 2^20]", "questions per rollout batch"),
        "attempts": number(8, "[1, 2^16]", "attempts per question"),
        "temperature": number(1.0, "(0, 100]", "sampling temperature"),
        "top_p": number(1.0, "(0, 1]", "total probability of tokens to sample from"),
        "top_k": number(0, "[0, 2^31)", "number of tokens to sample from; 0 for all"),
        "max_prompt": number(2048, "[1, 2^24]", "maximum tokens of a prompt"),
        "long_prompts": choice(
            "refuse", "refuse | drop", "stop at longer ones or drop them"
        ),
        "max_response": number(8192, "[1, 2^24]", "maximum tokens of a response"),
        "rows_at_once": number(
            256, "[1, 2^20]", "attempts sampled together; fewer where memory is short"
        ),
    },
    "curriculum": {
        "min_pass_rate": number(
            0.0, "[0, 1]", "skip questions below this pass rate for some turns"
        ),
        "max_pass_rate": number(
            1.0, "[0, 1]", "skip questions above this pass rate for some turns"
        ),
    },
    "reprompt": {
        "success_score": number(
            1.0, "(0, 1]", "minimum score of a solved attempt; actor.yaml: 0.5"
        ),
        "demonstration_from": choice(
            "peers",
            "peers | own_if_solved | any_attempt | nobody",
            "whose solution the teacher of an attempt sees",
        ),
        "show_feedback": choice(
            "without_solution",
            "never | without_solution | always",
            "when the teacher sees the environment's feedback",
        ),
        "show_attempt": flag(False, "show the attempt itself before its feedback"),
        "strip_thinking": flag(True, "remove reasoning from demonstrations"),
        "max_length": number(
            10240,
            "[1, 2^24]",
            "maximum tokens of the teacher's prompt; longer demonstrations and "
            "feedback are cut in the middle",
        ),
        "template": template(
            "{prompt}{solution}{attempt}{feedback}"
            "\n\nCorrectly solve the original question.",
            ("prompt", "solution", "attempt", "feedback"),
            "user turn that the teacher reads",
        ),
        "solution_template": template(
            "\nCorrect solution:\n\n{solution}",
            ("solution",),
            "part of the turn that holds a demonstration",
        ),
        "feedback_template": template(
            "\nThe following is feedback from your unsuccessful earlier attempt:"
            "\n\n{feedback}",
            ("feedback",),
            "part of the turn that holds the environment's feedback",
        ),
    },
    **METHODS,
    "teacher": {
        "mode": choice(
            "ema", "ema | trust_region | frozen | live", "how it follows the student"
        ),
        "rate": number(0.05, "[0, 1]", "step of the EMA towards the student"),
        "mixture": number(0.05, "[0, 1]", "weight of the live student in trust_region"),
        "update_per": choice(
            "rollout_batch", "rollout_batch | optimizer_step", "how often the EMA moves"
        ),
    },
    "lora": {
        "rank": number(0, "[0, 2^16]", "rank of the adapters; 0 trains all weights"),
        "alpha": number(32.0, "(0, 2^16]", "adapters are scaled by alpha / rank"),
    },
    "optimizer": {
        "learning_rate": number(1e-5, "(0, 1]", "AdamW's rate after the warm-up"),
        "schedule": choice(
            "constant",
            "constant | cosine | official",
            "after the warm-up; official: constant, with a warm-up that starts at 0",
        ),
        "warmup_updates": number(10, "[0, 2^31)", "rollout batches of linear warm-up"),
        "weight_decay": number(0.01, "[0, 1]", "AdamW's weight decay"),
        "clip_norm": number(1.0, "(0, 10^9]", "maximum norm of the full gradient"),
    },
    "step": {
        "questions": number(32, "[1, 2^20]", "questions per optimiser step"),
        "micro_batch": number(0, "[0, 2^20]", "rows per device at a time; 0 for all"),
        "chunk": number(512, "[1, 2^20]", "response positions per chunk of logits"),
        "aggregation": choice(
            "token_mean",
            "token_mean | sequence_mean | sequence_mean_all_rows",
            "mean of token losses; see aggregation.token_weights",
        ),
        "sampler_ratio_cap": number(2.0, "[1, 10^9]", "maximum of pi_old / pi_sampler"),
    },
    "mesh": {
        "data": number(
            1, "{-1} | [1, 2^20]", "devices that split rows; -1 for all that are left"
        ),
        "fsdp": number(
            -1, "{-1} | [1, 2^20]", "devices that split rows and weights; -1 as in data"
        ),
        "tensor": number(
            1,
            "{-1} | [1, 2^20]",
            "devices that split heads and vocabulary; -1 as in data",
        ),
    },
    "train": {
        "updates": number(100, "[1, 2^31)", "rollout batches in all"),
        "evaluate_every": number(
            5, "[1, 2^31)", "updates between evaluations; the last always has one"
        ),
        "save_every": number(
            5, "[1, 2^31)", "updates between checkpoints; the last always has one"
        ),
    },
    "eval": {
        "attempts": number(16, "[1, 2^16]", "attempts per question"),
        "temperature": number(
            0.6, "[0, 100]", "sampling temperature; 0 for the likeliest token"
        ),
        "top_p": number(0.95, "(0, 1]", "as rollout.top_p"),
        "top_k": number(0, "[0, 2^31)", "as rollout.top_k"),
        "pass_at": numbers((1,), "[1, 2^16]", "values of k in pass@k"),
        "max_questions": number(
            0, "[0, 2^31)", "first questions of each split to use; 0 for all"
        ),
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
    """A locked config with the default of every field."""
    return _defaults(_FIELDS).lock()


def _defaults(fields: Mapping) -> ConfigDict:
    c = ConfigDict()
    for name, field in fields.items():
        c[name] = field.default if isinstance(field, Knob) else _defaults(field)
    return c


def describe() -> str:
    """A help text: every field with its default, allowed values and meaning."""
    return "\n".join(
        f"  --config.{field}={knob.default!r} ({knob.allowed})\n    {knob.meaning}"
        for field, knob in KNOBS.items()
    )


def validate(c: ConfigDict) -> None:
    """Refuse invalid configs before anything is loaded or compiled.

    Tasks and methods check their own fields: see `components.validate`.

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
    """The config of the run in a folder.

    Raises:
      ValueError: if the folder has no config, or its config has unknown fields.
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
        # JSON stores tuples as lists.
        if isinstance(known[field], tuple):
            fields[field] = tuple(value)
    c.update_from_flattened_dict(fields)
    return c


def from_file(path: str | os.PathLike) -> ConfigDict:
    """The config of a run file, so that another run file can change a few fields."""
    return runpy.run_path(os.fspath(path))["get_config"]()


def _check_combinations(c: ConfigDict) -> None:
    """Refuse values that are valid alone but not together."""
    if not c.model.path:
        raise ValueError("model.path is empty: give a Hugging Face folder or hub id")
    if c.rollout.questions % c.step.questions:
        raise ValueError(
            f"rollout.questions={c.rollout.questions} is not a multiple of "
            f"step.questions={c.step.questions}"
        )
    if c.reprompt.max_length <= c.rollout.max_prompt:
        raise ValueError(
            f"reprompt.max_length={c.reprompt.max_length} must exceed "
            f"rollout.max_prompt={c.rollout.max_prompt}, to leave room for what is "
            "added to the question; raise it"
        )
    templates.check_shown(c.reprompt)
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
    """The known field that is most similar to a mistyped one."""
    fields = list(fields)
    same_leaf = [f for f in fields if f.split(".")[-1] == field.split(".")[-1]]
    return difflib.get_close_matches(field, same_leaf or fields, n=1, cutoff=0.0)[0]
