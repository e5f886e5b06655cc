"""Every run file loads, makes sense, and says how it is run."""

import importlib.util
import pathlib

import pytest

from sdpo_jax import config

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.py"))


def load(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_run_files():
    assert {"quickstart", "quickstart_grpo"} <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_run_file_opens_with_its_own_command(file):
    first, *lines = load(file).__doc__.splitlines()

    assert first.endswith(".")
    command = f"python -m sdpo_jax.main --config=configs/{file.name}"
    assert command in map(str.strip, lines)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_run_file_makes_sense_and_changes_only_fields_there_are(file):
    found, default = load(file).get_config(), config.default()

    config.validate(found)

    assert found.is_locked
    ours, theirs = config.flat(found), config.flat(default)
    assert ours.keys() == theirs.keys()
    assert ours != theirs
    for field, value in ours.items():
        assert type(value) is type(theirs[field]), field


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_call_returns_a_config_of_its_own(file):
    module = load(file)
    first = module.get_config()
    first.seed = 12345
    assert module.get_config().seed != 12345


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_that_a_run_file_names_are_there(file):
    c = load(file).get_config()
    for path in (c.model.path, *(c.env[split] for split in config.SPLITS)):
        # A name on the hub or a file that the user brings is nobody's to check here.
        inside = FOLDER.parent in pathlib.Path(path).parents
        assert not inside or pathlib.Path(path).exists(), path


def test_methods_are_compared_at_equal_generations():
    sdpo = config.flat(load(FOLDER / "quickstart.py").get_config())
    grpo = config.flat(load(FOLDER / "quickstart_grpo.py").get_config())

    differ = {field for field in sdpo if sdpo[field] != grpo[field]}

    # Beside the method, only what was tuned for each.
    assert differ == {"method", "optimizer.learning_rate", "step.questions"}
