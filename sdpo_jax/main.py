"""The command line: flags in, one job out.

python -m sdpo_jax.main --config=configs/quickstart.py
python -m sdpo_jax.main --config=configs/quickstart.py --config.sdpo.top_k=20
python -m sdpo_jax.main --config=configs/quickstart.py --job=evaluate
"""

import json
import logging
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from sdpo_jax import config

_CONFIG = config_flags.DEFINE_config_file("config", help_string="A run file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Run folder; runs/<config> if unset.")
_JOB = flags.DEFINE_enum("job", "train", ["train", "evaluate"], "What to do.")
_MAY_CHANGE = flags.DEFINE_list(
    "may_change", [], "Config fields that may differ from the run being resumed."
)


def main(argv: Sequence[str]) -> int | str:
    """Run the job that the flags name and print its result as JSON.

    Returns:
      What `sys.exit` takes: 0, or one line that says what to change.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sdpo_jax").setLevel(logging.INFO)
    try:
        extra = flags.FLAGS(argv)[1:]
        if extra or _CONFIG.value is None:
            wrong = f"{extra[0]!r} is not a flag" if extra else "--config is missing"
            raise ValueError(f"{wrong}; usage: --config=configs/<run>.py")
        print(json.dumps(_run(), indent=1))
    except (AttributeError, KeyError, flags.Error) as error:
        return f"error: {_name_field(error, argv)}"
    except OSError as error:
        # A run file that cannot be read is told on the last of several lines.
        return f"error: {str(error).splitlines()[-1].strip()}"
    except (ValueError, FloatingPointError) as error:
        return f"error: {error}"
    return 0


def _run() -> dict:
    # Imported once the flags are known to be right: JAX takes seconds to load.
    from sdpo_jax import evaluate, train

    c = _CONFIG.value
    if _JOB.value == "evaluate":
        return evaluate.run(c)
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = _WORKDIR.value or pathlib.Path("runs") / name
    try:
        return train.run(c, workdir, may_change=_MAY_CHANGE.value)
    except train.Interrupted as stopped:
        sys.exit(f"{stopped}; the same command goes on")


def _name_field(error: Exception, argv: Sequence[str]) -> str:
    """The error in one line, with the field that a mistyped one resembles."""
    fields = config.flat(config.default())
    overrides = re.findall(r"--config\.([\w.]+)", " ".join(argv))
    keys = re.findall(r'^.?Key "(\w+)"', str(error)) + overrides
    for key in keys:
        known = any(f == key or f.startswith(f"{key}.") for f in fields)
        if not known and not isinstance(error, flags.Error):
            near = config.nearest(key, fields)
            return f"{key}: no such config field; nearest: {near} = {fields[near]!r}"
    return str(error).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
