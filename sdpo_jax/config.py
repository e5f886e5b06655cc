"""Every shared knob, its default and its meaning; and what values make sense.

A run file's `get_config()` changes what differs:

  from sdpo_jax import config

  def get_config():
      c = config.default()
      c.model.path = "Qwen/Qwen3-8B"
      return c

Defaults are those of the SDPO paper (arXiv:2601.20802, Table 12, without rich
feedback) and of its code. Feedback is shown where an environment has any; the paper's
runs without rich feedback set `reprompt.show_feedback` to "never".
"""

import difflib
import json
import os
import pathlib
import runpy
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

SPLITS = ("train", "validation", "heldout")
LORA_TARGETS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


def default() -> ConfigDict:  # noqa: PLR0915, one line per field
    """The locked config of a run, before anything is changed."""
    c = ConfigDict()
    c.method = "sdpo"  # sdpo | grpo
    c.seed = 0  # of the order of questions, of sampling and of demonstrations

    c.model = ConfigDict()
    c.model.path = ""  # a Hugging Face folder or hub id
    c.model.dtype = "auto"  # auto | float32 | bfloat16: of computation; auto by device
    c.model.attention = "auto"  # auto | xla | splash | cudnn: auto by device
    c.model.remat = "none"  # none | layer: what the backward pass computes again
    c.model.enable_thinking = False  # handed to the chat template

    c.env = ConfigDict()
    # programming | multiple_choice | tool_use | mathematics | rules | judge |
    # privileged | reasoning_gym | frozen_lake | sokoban | function; "" for an object
    # handed to train.run
    c.env.name = "programming"
    # A file of questions, or a dataset: hf:NAME?split=train, tfds:NAME?split=train;
    # see questions/sources.py. Games are drawn from seeds, seeds:0-9999.
    c.env.train = ""
    # The best checkpoint is chosen on these; "share:0.1" takes a tenth of env.train.
    c.env.validation = ""
    c.env.heldout = ""  # reported, never chosen on; likewise a source or a share
    # fixed | official: as the official code scores, of what it has a grader for
    c.env.grader = "fixed"
    c.env.function = ""  # module:name of the grader of env.name=function
    # Per attempt, waiting for a sandbox included; one that takes longer is masked.
    c.env.grading_limit_s = 1800.0
    c.env.sandbox_tier = "auto"  # auto | A | B | C | D | R: isolation of programs
    c.env.sandbox_url = ""  # of the grader of tier R, http://host:port
    c.env.packages = ("numpy",)  # installed modules that programs can import
    c.env.process_per = "test"  # test | program: what has a process of its own
    c.env.time_limit_s = 6.0  # CPU seconds per test or comparison of answers
    c.env.memory_limit_mb = 1024  # per program
    c.env.wrong_answers_shown = 2  # failing tests told in one feedback
    # What it tells of them: inputs | outputs (the program's, too) | expected (as well).
    c.env.feedback_reveals = "expected"
    c.env.judge = ConfigDict()  # of env.name=judge
    c.env.judge.url = ""  # what comes before /chat/completions
    c.env.judge.model = ""  # as the endpoint calls it

    c.rollout = ConfigDict()
    c.rollout.questions = 32  # per rollout batch
    c.rollout.attempts = 8  # per question
    c.rollout.temperature = 1.0
    c.rollout.top_p = 1.0  # (0, 1]
    c.rollout.top_k = 0  # 0 keeps the whole vocabulary
    c.rollout.max_prompt = 2048  # tokens
    c.rollout.long_prompts = "refuse"  # refuse | drop: what takes more
    c.rollout.max_response = 8192  # tokens
    c.rollout.rows_at_once = 256  # attempts sampled together, all devices

    # A question solved by a smaller or larger share of its last attempts sits out.
    c.curriculum = ConfigDict()
    c.curriculum.min_pass_rate = 0.0  # with max_pass_rate 1: no question ever does
    c.curriculum.max_pass_rate = 1.0
    c.curriculum.remeasure_every = 4  # turns that it sits out before its next visit

    c.reprompt = ConfigDict()
    c.reprompt.success_score = 1.0  # solved from here on; actor.yaml there says 0.5
    c.reprompt.demonstration_from = "peers"  # peers|own_if_solved|any_attempt|nobody
    c.reprompt.show_feedback = "without_solution"  # never | without_solution | always
    c.reprompt.show_attempt = False  # the attempt itself, before its feedback
    c.reprompt.strip_thinking = True  # drop <think> blocks of demonstrations
    c.reprompt.max_length = 10240  # tokens; what is shown is cut in its middle
    c.reprompt.template = (
        "{prompt}{solution}{attempt}{feedback}"
        "\n\nCorrectly solve the original question."
    )
    c.reprompt.solution_template = "\nCorrect solution:\n\n{solution}"
    c.reprompt.attempt_template = "\nYour earlier attempt:\n\n{attempt}"
    c.reprompt.feedback_template = (
        "\nThe following is feedback from your unsuccessful earlier attempt:"
        "\n\n{feedback}"
    )

    c.sdpo = ConfigDict()
    c.sdpo.divergence = "jensen_shannon"  # forward_kl | reverse_kl | jensen_shannon
    c.sdpo.mixture = 0.5  # the teacher's share of the Jensen-Shannon mixture
    c.sdpo.support = "top_k"  # full | top_k | sampled_token
    c.sdpo.top_k = 100  # the student's most likely tokens
    c.sdpo.keep_tail = True  # one bucket for the rest; else renormalise
    c.sdpo.importance_ratio_cap = 2.0  # on pi / pi_old

    c.grpo = ConfigDict()
    c.grpo.clip_low = 0.2
    c.grpo.clip_high = 0.28
    c.grpo.dual_clip = 3.0  # at most this times |advantage| where it is negative
    c.grpo.normalize_std = False  # divide advantages by their group's deviation

    c.teacher = ConfigDict()
    c.teacher.mode = "ema"  # ema | trust_region | frozen | live
    c.teacher.rate = 0.05  # of the average, per update of the teacher
    c.teacher.mixture = 0.05  # the live student's share in a trust region
    c.teacher.update_per = "rollout_batch"  # rollout_batch | optimizer_step

    c.lora = ConfigDict()
    c.lora.rank = 0  # 0 trains all weights
    c.lora.alpha = 32.0  # changes are scaled by alpha / rank
    c.lora.targets = LORA_TARGETS  # projections of every layer

    c.optimizer = ConfigDict()
    c.optimizer.learning_rate = 1e-5
    c.optimizer.schedule = "constant"  # constant | cosine: after the warm-up
    c.optimizer.warmup_updates = 10  # rollout batches
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip_norm = 1.0  # of the whole gradient

    c.step = ConfigDict()
    c.step.questions = 32  # of one optimiser step
    c.step.micro_batch = 0  # rows per device at a time; 0 takes all at once
    c.step.chunk = 512  # response positions whose logits exist at once
    c.step.aggregation = "token_mean"  # see weights.token_weights
    c.step.sampler_ratio_cap = 2.0  # on pi_old / pi_sampler

    c.mesh = ConfigDict()
    c.mesh.data = 1  # -1 takes the devices that the other axes leave
    c.mesh.fsdp = -1
    c.mesh.tensor = 1
    c.mesh.multi_host = False  # join the other hosts of a pod

    c.train = ConfigDict()
    c.train.updates = 100  # rollout batches
    c.train.evaluate_every = 5  # updates; the last is always evaluated
    c.train.save_every = 5  # updates; the last is always saved
    c.train.wandb_project = ""  # empty for none

    c.eval = ConfigDict()
    c.eval.attempts = 16  # per question
    c.eval.temperature = 0.6
    c.eval.top_p = 0.95
    c.eval.top_k = 0
    c.eval.pass_at = (1,)  # the k of pass@k
    c.eval.max_questions = 0  # of each split, the first ones; 0 takes all

    c.export = ConfigDict()
    c.export.path = ""  # a folder to make; "" is <run folder>/export
    c.export.weights = "student"  # student | teacher
    c.export.checkpoint = "last"  # last | best: by validation
    c.export.dtype = "bfloat16"  # bfloat16 | float32
    c.export.lora = "merged"  # merged | peft: with the base, or alone in PEFT's format
    c.export.after_training = False
    return c.lock()


_CHOICES = {
    "method": ("sdpo", "grpo"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.attention": ("auto", "xla", "splash", "cudnn"),
    "model.remat": ("none", "layer"),
    "env.name": (
        *("programming", "multiple_choice", "tool_use", "mathematics", "function"),
        *("rules", "judge", "privileged", "reasoning_gym"),
        *("frozen_lake", "sokoban", ""),
    ),
    "env.grader": ("fixed", "official"),
    "env.sandbox_tier": ("auto", "A", "B", "C", "D", "R"),
    "env.process_per": ("test", "program"),
    "env.feedback_reveals": ("inputs", "outputs", "expected"),
    "rollout.long_prompts": ("refuse", "drop"),
    "reprompt.demonstration_from": ("peers", "own_if_solved", "any_attempt", "nobody"),
    "reprompt.show_feedback": ("never", "without_solution", "always"),
    "sdpo.divergence": ("forward_kl", "reverse_kl", "jensen_shannon"),
    "sdpo.support": ("full", "top_k", "sampled_token"),
    "teacher.mode": ("ema", "trust_region", "frozen", "live"),
    "teacher.update_per": ("rollout_batch", "optimizer_step"),
    "optimizer.schedule": ("constant", "cosine"),
    "export.weights": ("student", "teacher"),
    "export.checkpoint": ("last", "best"),
    "export.dtype": ("bfloat16", "float32"),
    "export.lora": ("merged", "peft"),
    "step.aggregation": ("token_mean", "sequence_mean", "sequence_mean_all_rows"),
}

# Field -> the environment that needs it.
_ONLY_OF = {
    "env.function": "function",
    "env.judge.url": "judge",
    "env.judge.model": "judge",
}
_HAS_OFFICIAL_GRADER = (*("programming", "multiple_choice", "tool_use", "mathematics"),)

# Field -> (lowest, highest, whether the lowest itself is allowed).
_RANGES = {
    "seed": (0, 2**31 - 1, True),
    "env.grading_limit_s": (0, 1e6, False),
    "env.time_limit_s": (0, 3600, False),
    "env.memory_limit_mb": (16, 2**20, True),
    "env.wrong_answers_shown": (1, 100, True),
    "rollout.questions": (1, 2**20, True),
    "rollout.attempts": (1, 2**16, True),
    "rollout.temperature": (0, 100, False),
    "rollout.top_p": (0, 1, False),
    "rollout.top_k": (0, 2**31 - 1, True),
    "rollout.max_prompt": (1, 2**24, True),
    "rollout.max_response": (1, 2**24, True),
    "rollout.rows_at_once": (1, 2**20, True),
    "curriculum.min_pass_rate": (0, 1, True),
    "curriculum.max_pass_rate": (0, 1, True),
    "curriculum.remeasure_every": (1, 2**31 - 1, True),
    "reprompt.success_score": (0, 1, False),
    "reprompt.max_length": (1, 2**24, True),
    "sdpo.top_k": (1, 2**20, True),
    "sdpo.importance_ratio_cap": (1, 1e9, True),
    "grpo.clip_low": (0, 1, False),
    "grpo.clip_high": (0, 1e9, False),
    "grpo.dual_clip": (1, 1e9, False),
    "teacher.rate": (0, 1, True),
    "teacher.mixture": (0, 1, True),
    "lora.rank": (0, 2**16, True),
    "lora.alpha": (0, 2**16, False),
    "optimizer.learning_rate": (0, 1, False),
    "optimizer.warmup_updates": (0, 2**31 - 1, True),
    "optimizer.weight_decay": (0, 1, True),
    "optimizer.clip_norm": (0, 1e9, False),
    "step.questions": (1, 2**20, True),
    "step.micro_batch": (0, 2**20, True),
    "step.chunk": (1, 2**20, True),
    "step.sampler_ratio_cap": (1, 1e9, True),
    "train.updates": (1, 2**31 - 1, True),
    "train.evaluate_every": (1, 2**31 - 1, True),
    "train.save_every": (1, 2**31 - 1, True),
    "eval.attempts": (1, 2**16, True),
    "eval.temperature": (0, 100, True),
    "eval.top_p": (0, 1, False),
    "eval.top_k": (0, 2**31 - 1, True),
    "eval.max_questions": (0, 2**31 - 1, True),
}


def validate(c: ConfigDict) -> None:
    """Refuse what cannot work, before anything is read or compiled.

    Raises:
      ValueError: one line that names the field, its value and what to change.
    """
    for field, choices in _CHOICES.items():
        _check_choice(field, get(c, field), choices)
    for field, limits in _RANGES.items():
        _check_range(field, get(c, field), *limits)
    for axis in ("data", "fsdp", "tensor"):
        if c.mesh[axis] < 1 and c.mesh[axis] != -1:
            raise ValueError(f"mesh.{axis}={c.mesh[axis]}: must be at least 1, or -1")
    if not 0 < c.sdpo.mixture < 1:
        raise ValueError(
            f"sdpo.mixture={c.sdpo.mixture}: must lie between 0 and 1; for the ends "
            "set sdpo.divergence to forward_kl or reverse_kl"
        )
    _check_combinations(c)
    _check_environment(c)
    _check_curriculum(c)
    _check_lora(c)


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
    if c.sdpo.support == "sampled_token" and c.sdpo.divergence != "reverse_kl":
        raise ValueError(
            "sdpo.support=sampled_token estimates the reverse KL only: set "
            f"sdpo.divergence to reverse_kl, not {c.sdpo.divergence}"
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
    if c.method == "grpo" and c.rollout.attempts < 2:
        raise ValueError("rollout.attempts=1: GRPO compares attempts, set at least 2")
    if c.method == "sdpo" and not _can_teach(c):
        raise ValueError(
            "reprompt.demonstration_from=nobody with reprompt.show_feedback=never "
            "shows the teacher nothing; change one of them"
        )
    too_many = [k for k in c.eval.pass_at if not 1 <= k <= c.eval.attempts]
    if too_many:
        raise ValueError(
            f"eval.pass_at={tuple(c.eval.pass_at)}: pass@k needs 1 <= k <= "
            f"eval.attempts={c.eval.attempts}"
        )


def _check_environment(c: ConfigDict) -> None:
    """Refuse what the named environment lacks, or would not read."""
    if c.env.grader == "official" and c.env.name not in _HAS_OFFICIAL_GRADER:
        raise ValueError(
            f"env.grader=official: env.name={c.env.name} has the fixed grader only; "
            f"{', '.join(_HAS_OFFICIAL_GRADER)} have both"
        )
    for field, name in _ONLY_OF.items():
        if bool(get(c, field)) != (c.env.name == name):
            raise ValueError(
                f"{field}={get(c, field)!r} with env.name={c.env.name}: it is set with "
                f"env.name={name}, and only then"
            )
    if (c.env.sandbox_tier == "R") != bool(c.env.sandbox_url):
        raise ValueError(
            f"env.sandbox_tier={c.env.sandbox_tier} and env.sandbox_url="
            f"{c.env.sandbox_url!r}: tier R needs the url of a grader, no other does"
        )


def _check_curriculum(c: ConfigDict) -> None:
    """Refuse a band that nothing can lie in."""
    if c.curriculum.min_pass_rate > c.curriculum.max_pass_rate:
        raise ValueError(
            f"curriculum.min_pass_rate={c.curriculum.min_pass_rate} exceeds "
            f"curriculum.max_pass_rate={c.curriculum.max_pass_rate}"
        )


def _check_lora(c: ConfigDict) -> None:
    """Refuse targets that there are not, and an export of what is not trained."""
    unknown = [target for target in c.lora.targets if target not in LORA_TARGETS]
    if unknown or not c.lora.targets or len(set(c.lora.targets)) < len(c.lora.targets):
        raise ValueError(
            f"lora.targets={tuple(c.lora.targets)}: must name some of "
            f"{', '.join(LORA_TARGETS)}, each once"
        )
    if c.export.lora == "peft" and not c.lora.rank:
        raise ValueError("export.lora=peft: lora.rank=0 trains no adapters to export")


def _can_teach(c: ConfigDict) -> bool:
    nobody = c.reprompt.demonstration_from == "nobody"
    return not nobody or c.reprompt.show_feedback != "never"


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


def _check_choice(field: str, value, choices: tuple[str, ...]) -> None:
    if value not in choices:
        named = " | ".join(repr(choice) for choice in choices)
        raise ValueError(f"{field}={value!r}: must be one of {named}")


def _check_range(field: str, value, low, high, low_allowed: bool) -> None:
    inside = low <= value <= high if low_allowed else low < value <= high
    if not inside:
        relation = "at least" if low_allowed else "more than"
        raise ValueError(
            f"{field}={value}: must be {relation} {low} and at most {high}"
        )
