"""The command line: parses flags and runs one job.

python -m sdpo_jax.main --config=configs/quickstart.py
python -m sdpo_jax.main --config=configs/quickstart.py --config.sdpo.top_k=20
python -m sdpo_jax.main --config=configs/quickstart.py --job=evaluate
python -m sdpo_jax.main --job=evaluate --workdir=runs/quickstart --checkpoint=best
python -m sdpo_jax.main --job=export --workdir=runs/quickstart
"""

import argparse
import json
import logging
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from sdpo_jax import config, envs, hub, run_file

_CONFIG = config_flags.DEFINE_config_file("config", help_string="A run file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run folder; runs/<config> if unset.")
_JOB = flags.DEFINE_enum("job", "train", ["train", "evaluate", "export"], "What to do.")
_MULTI_HOST = flags.DEFINE_bool(
    "multi_host", False, "Join the other hosts of a pod; give it on each of them."
)
_MAY_CHANGE = flags.DEFINE_list(
    "may_change", [], "Config fields that may differ from the run being resumed."
)
_WANDB_PROJECT = flags.DEFINE_string(
    "wandb_project", None, "Also log training metrics to this wandb project."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "last (the default) | best, by validation; of the run folder"
)
_JSON = flags.DEFINE_bool("json", False, "Print the result as JSON, not as a table.")
# Keywords of `export.run`, which holds their defaults and checks them.
_EXPORT = {
    "path": flags.DEFINE_string(
        "export_path", None, "Folder to create; <run folder>/export if unset."
    ),
    "weights": flags.DEFINE_string(
        "export_weights", None, "student (the default) | teacher"
    ),
    "checkpoint": _CHECKPOINT,
    "dtype": flags.DEFINE_string(
        "export_dtype", None, "bfloat16 (the default) | float32"
    ),
    "lora": flags.DEFINE_string(
        "export_lora", None, "merged (the default): into the base | peft: adapters only"
    ),
}
# Flag -> the jobs that read it, for flags that only some jobs read.
_READ_BY = {
    "may_change": ("train",),
    "wandb_project": ("train",),
    **{flag.name: ("export",) for flag in _EXPORT.values()},
    "checkpoint": ("evaluate", "export"),
}


def main(argv: Sequence[str]) -> int | str:
    """Run the job that the flags name and print its result.

    Returns:
      What `sys.exit` takes: 0, or one line that says what to change.
    """
    # Of other packages too; those of this one are shown by each job.
    logging.basicConfig(format="%(message)s")
    if {"-h", "--help"} & set(argv):
        print(f"{__doc__}{flags.FLAGS.main_module_help()}\n\n{config.describe()}")
        return 0
    try:
        c = _parse(argv)
    except Exception as error:
        # A run file is the user's code: it may raise anything.
        return f"error: {_explain(error, argv)}"
    try:
        result, text = _run(c)
        print(json.dumps(result, indent=1) if _JSON.value else text)
    except (ValueError, OSError, FloatingPointError) as error:
        return f"error: {error}"
    except KeyboardInterrupt:
        return "error: interrupted"
    return 0


def _parse(argv: Sequence[str]) -> ConfigDict:
    run_file.check(argv)
    extra = flags.FLAGS(_with_config_of_run(argv))[1:]
    if extra or not _CONFIG.present:
        problem = f"{extra[0]!r} is not a flag" if extra else "--config is missing"
        raise ValueError(f"{problem}; usage: --config=configs/<run>.py")
    # Reading an attribute of the value raises the error of a file that failed to load.
    if not hasattr(_CONFIG.value, "to_dict"):
        raise ValueError(
            f"get_config() returned {_CONFIG.value!r}, expected config.default() with "
            "its changes"
        )
    for name, jobs in _READ_BY.items():
        if flags.FLAGS[name].present and _JOB.value not in jobs:
            raise ValueError(
                f"--{name} is not read by --job={_JOB.value}, only by "
                f"--job={' and '.join(jobs)}; leave it out"
            )
    run_file.check_overrides(argv, _JOB.value, _CONFIG.value.method)
    config.validate(_CONFIG.value)
    envs.validate(_CONFIG.value)
    hub.check_path(_CONFIG.value.model.path)
    sources = [_CONFIG.value.env[split] for split in config.SPLITS]
    hub.ask_early(_CONFIG.value.model.path, *sources)
    return _CONFIG.value


def _with_config_of_run(argv: Sequence[str]) -> list[str]:
    """The arguments; if a job on a run has no --config, with that of the run folder."""
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--job", "--workdir"):
        known.add_argument(name, nargs="?")
    given, _ = known.parse_known_args(argv[1:])
    of_run = given.job in ("evaluate", "export") and given.workdir
    if given.config is not None or not of_run:
        return list(argv)
    config.from_run(given.workdir)  # Raises a clear error if it is no run folder.
    run_file = pathlib.Path(config.__file__).with_name("run_config.py")
    return [argv[0], f"--config={run_file}:{given.workdir}", *argv[1:]]


def _run(c: ConfigDict) -> tuple[dict, str]:
    """The result of the job, and the text that shows it."""
    # Imported only after the config is checked: JAX takes seconds to load.
    from sdpo_jax import distributed

    if _MULTI_HOST.value:
        distributed.start()
    jobs = {"train": _train, "evaluate": _evaluate, "export": _export}
    return jobs[_JOB.value](c)


def _train(c: ConfigDict) -> tuple[dict, str]:
    from sdpo_jax import interrupt, summary, train

    try:
        found = train.run(
            c,
            _folder(),
            may_change=_MAY_CHANGE.value,
            wandb_project=_WANDB_PROJECT.value,
        )
    except interrupt.Interrupted as stopped:
        sys.exit(f"{stopped}; the same command resumes")
    return found, summary.describe(found, _folder())


def _evaluate(c: ConfigDict) -> tuple[dict, str]:
    from sdpo_jax import answers, evaluate, interrupt

    path = answers.new_folder(_folder())
    checkpoint = {"checkpoint": _CHECKPOINT.value} if _CHECKPOINT.present else {}
    try:
        found = evaluate.run(c, workdir=_WORKDIR.value, path=path, **checkpoint)
    except interrupt.Interrupted as stopped:
        is_begun = path.exists()
        sys.exit(f"{stopped}" + f"; the answers so far are in {path}" * is_begun)
    return found, evaluate.describe(found, path)


def _export(c: ConfigDict) -> tuple[dict, str]:
    from sdpo_jax import export

    given = {name: flag.value for name, flag in _EXPORT.items() if flag.present}
    found = export.run(c, _WORKDIR.value, **given)
    return found, "\n".join(f"{name}: {value}" for name, value in found.items())


def _folder() -> str:
    """The run folder: the one given, or that of the run file's name."""
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    return _WORKDIR.value or f"runs/{pathlib.Path(file).stem}"


def _explain(error: Exception, argv: Sequence[str]) -> str:
    """The error in one line; for a mistyped field, with the most similar one."""
    while "Error whilst parsing config file" in str(error):
        error = error.__context__
    fields = config.flat(config.default())
    given, keys = re.findall(r"--config\.([\w.]+)", " ".join(argv)), []
    for key in given:
        inside = [f for f in fields if f.startswith(f"{key}.")]
        if inside and "ConfigDict" in str(error):
            return f"--config.{key}: is a group of fields: {', '.join(inside)}"
    if isinstance(error, (AttributeError, KeyError)):
        # The two forms in which ml_collections reports a missing field.
        keys = re.findall(r"""^(?:.?Key )?['"\\]+(\w+)['"\\]""", str(error))
        keys = given + keys
    for key in keys:
        if not any(f == key or f.startswith(f"{key}.") for f in fields):
            near = config.nearest(key, fields)
            message = f"no such config field; nearest: {near} = {fields[near]!r}"
            return f"{_where(error, argv)}{key}: {message}"
    lines = str(error).strip().splitlines() or [repr(error)]
    # The reason why a file cannot be read is on the last line.
    message = lines[-1] if isinstance(error, OSError) else lines[0]
    return f"{_where(error, argv)}{message.strip()}"


def _where(error: Exception, argv: Sequence[str]) -> str:
    """The line of the run file that raised `error`; empty if none did."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    places = [f for f in frames if any(arg.endswith(f.filename) for arg in argv[1:])]
    return f"{places[-1].filename}:{places[-1].lineno}: " if places else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv))
