"""Checks of a command line before its run file is executed, and of what its job reads.

`config_flags` runs any file as Python, and says of others only what Python says.
"""

import argparse
import pathlib
import re
from collections.abc import Sequence

from sdpo_jax import config
from sdpo_jax.questions import files

_DATA = (".json", ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".cfg")
_RUN_FILE = "a run file is Python with get_config(), such as configs/quickstart.py"
# Job -> the config fields, or groups of them, that change nothing in its results.
_UNREAD = {
    "evaluate": (
        *("curriculum", "model.remat", "optimizer", "step", "teacher", "train"),
        *("rollout.attempts", "rollout.questions"),
        *("rollout.temperature", "rollout.top_p", "rollout.top_k"),
        *("reprompt.demonstration_from", "reprompt.show_feedback"),
        *("reprompt.show_attempt", "reprompt.strip_thinking", "reprompt.template"),
        *("reprompt.solution_template", "reprompt.feedback_template"),
        *config.METHODS,
    ),
    "export": (
        *("curriculum", "env", "eval", "optimizer", "reprompt", "rollout", "seed"),
        *("model.attention", "model.enable_thinking", "model.remat", "step", "train"),
        *("teacher.mixture", "teacher.rate", "teacher.update_per"),
        *config.METHODS,
    ),
}


def check(argv: Sequence[str]) -> None:
    """Refuse a --config that is no run file.

    Raises:
      ValueError: one line that says what it is and what to give instead.
    """
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--config", nargs="?")
    given = known.parse_known_args(argv[1:])[0].config
    # What follows a colon is the argument of get_config.
    path = pathlib.Path((given or "").partition(":")[0])
    if not given or not path.exists():
        return  # Told by `config_flags`.
    run = path if path.is_dir() else path.parent
    if (path.is_dir() or path.name == "config.json") and _is_run(run):
        reader = pathlib.Path(config.__file__).with_name("run_config.py")
        raise ValueError(
            f"--config={path} is of a run: its config is read by "
            f"--config={reader}:{run}"
        )
    if path.is_dir():
        raise ValueError(f"--config={path}: Is a directory: '{path}'; {_RUN_FILE}")
    if path.suffix.lower() in _DATA:
        raise ValueError(f"--config={path} is {path.suffix[1:].upper()}; {_RUN_FILE}")
    text = files.text_of(path.read_bytes(), path)
    if "get_config" not in text:
        raise ValueError(f"--config={path} defines no get_config(); {_RUN_FILE}")


def _is_run(folder: pathlib.Path) -> bool:
    try:
        config.from_run(folder)
    except (ValueError, OSError):
        return False
    return True


def check_overrides(argv: Sequence[str], job: str, method: str) -> None:
    """Refuse --config.FIELD where the job or the config's method would ignore it.

    Raises:
      ValueError: names the flag, and the job or the method.
    """
    given = r"^--?(?:no)?config\.([\w.]+)"
    for field in re.findall(given, "\n".join(argv), re.MULTILINE):
        group = field.partition(".")[0]
        if group in config.METHODS and group != method:
            raise ValueError(
                f"--config.{field} is not read with method={method}; leave it out"
            )
        for unread in _UNREAD.get(job, ()):
            if not f"{field}.".startswith(f"{unread}."):
                continue
            name = f"eval.{field.partition('.')[2]}"
            is_other = job == "evaluate" and name in config.KNOBS
            instead = f"; it reads {name}" if is_other else ""
            raise ValueError(
                f"--config.{field} is not read by --job={job}{instead}; leave it out"
            )
