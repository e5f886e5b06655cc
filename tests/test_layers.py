"""Which file may import which, as data: a new file needs a line in LAYERS."""

import ast
import functools
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("sdpo_jax", "pallas_kernels")

# Lowest first. A file imports from lower layers, or from its own folder.
LAYERS = [
    ["pallas_kernels", "knobs"],
    ["compile_times", "digests", "hub", "json_files", "leaves", "manifest"]
    + ["mathematics", "sweep_grid", "tables", "templates", "thinking"],
    ["batch", "config", "distributed", "optimizer", "sandbox", "screen", "teacher"]
    + ["tracker"],
    ["metrics", "run_config", "run_folder", "interrupt", "questions"],
    ["model", "methods", "provenance", "envs", "reprompt", "data"],
    ["train_state", "inputs"],
    ["step", "rollout", "checkpoint", "memory"],
    # `feedback` turns text into arrays; `components` builds a run's objects.
    ["learner", "feedback", "components"],
    ["collect", "answers"],
    ["run_checkpoints"],
    ["evaluate", "export", "run_file"],
    ["summary"],
    ["train", "discover", "plan", "report"],
    ["main"],
    # `sweep` starts `main`, in processes of its own.
    ["sweep"],
]
# Within one layer these sides never import each other: arrays here, text there.
ARRAYS = {"model", "methods", "teacher"}
TEXT = {"sandbox", "questions", "envs", "reprompt", "data"}
# Weighty modules, and the only files that may import them.
ONLY_IN = {
    "transformers": ["sdpo_jax/data/tokenizer.py"],
    "jinja2": ["sdpo_jax/data/tokenizer.py"],
    "safetensors": ["sdpo_jax/model/huggingface.py"],
    "huggingface_hub": ["sdpo_jax/hub.py"],
    "orbax": ["sdpo_jax/checkpoint.py"],
    "subprocess": ["sdpo_jax/sandbox/process.py", "sdpo_jax/sweep.py"],
    "socket": [],
    "multiprocessing": [],
    "torch": [],
    "tensorflow": [],
    "wandb": ["sdpo_jax/tracker.py"],
    "matplotlib": ["sdpo_jax/report.py"],
    "pyarrow": ["sdpo_jax/questions/files.py"],
    "datasets": ["sdpo_jax/questions/hf.py"],
    "tensorflow_datasets": ["sdpo_jax/questions/tfds.py"],
    "urllib": [
        "sdpo_jax/sandbox/remote.py",
        "sdpo_jax/questions/hf.py",
        "sdpo_jax/sweep_grid.py",
    ],
    "http": ["sdpo_jax/sandbox/remote.py", "sdpo_jax/sandbox/server.py"],
    "openai": ["sdpo_jax/envs/judge.py"],
    "jsonschema": ["sdpo_jax/envs/rules/grader.py", "sdpo_jax/envs/rules/check.py"],
    "reasoning_gym": [],
    "sympy": ["sdpo_jax/mathematics/values.py"],
    "latex2sympy2_extended": [],
}
# Packages and files whose import pulls in no jax, directly or not.
WITHOUT_JAX = [
    "sdpo_jax.mathematics",
    "sdpo_jax.sandbox",
    "sdpo_jax.questions",
    "sdpo_jax.envs",
    "sdpo_jax.reprompt",
    "sdpo_jax.config",
    "sdpo_jax.report",
    "sdpo_jax.sweep",
    "sdpo_jax.sweep_grid",
]


def files():
    return [
        path.relative_to(ROOT)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def unit(module):
    """The part of a dotted module name that LAYERS knows; None for a bare package."""
    first, *rest = module.split(".")
    if first == "pallas_kernels":
        return first
    return rest[0] if rest else None


def dotted(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports(path):
    """Dotted names that a file imports, at its top or within functions."""
    names = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            # `from sdpo_jax import step` names the module in its alias.
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def level(name):
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("path", files(), ids=str)
def test_every_file_has_a_layer(path):
    name = unit(dotted(path))
    known = {name for layer in LAYERS for name in layer}

    assert name is None or name in known, (
        f"{path}: no layer knows {name!r}; add it to LAYERS in tests/test_layers.py, "
        "at the lowest line from which it imports nothing above"
    )


@pytest.mark.parametrize("path", files(), ids=str)
def test_imports_point_down(path):
    name = unit(dotted(path))
    if name is None:
        assert not imports(path), f"{path} must import nothing"
        return

    for module in imports(path):
        other = unit(module) if module.split(".")[0] in PACKAGES else None
        if other in (None, name):
            continue
        assert level(other) < level(name), (
            f"{path} imports {module}: layer {level(other)} is not below "
            f"{level(name)} (LAYERS in tests/test_layers.py)"
        )


@pytest.mark.parametrize("path", files(), ids=str)
def test_arrays_and_text_do_not_meet_below_feedback(path):
    name = unit(dotted(path))
    forbidden = TEXT if name in ARRAYS else ARRAYS if name in TEXT else set()

    used = {unit(m) for m in imports(path) if m.split(".")[0] in PACKAGES}

    assert not used & forbidden


@pytest.mark.parametrize("module", ONLY_IN)
def test_third_party_weight_stays_in_one_place(module):
    users = [
        str(path)
        for path in files()
        if any(name.split(".")[0] == module for name in imports(path))
    ]

    assert set(users) <= set(ONLY_IN[module])


def test_learner_knows_no_run_folder_and_no_text():
    known = {unit(name) for name in imports(pathlib.Path("sdpo_jax/learner.py"))}

    assert "step" in known
    assert not known & (TEXT | {"run_folder", "metrics", "checkpoint", "components"})


def test_kernels_import_nothing_of_ours():
    for path in files():
        if path.parts[0] == "pallas_kernels":
            assert not any(name.startswith("sdpo_jax") for name in imports(path))


def in_fresh_interpreter(code, folder):
    """Run code in an empty folder; (exit status, what was printed, files made)."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    made = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return done.returncode, done.stdout + done.stderr, made


def modules():
    return [dotted(path) for path in files() if path.stem != "__main__"]


def test_text_pulls_in_no_jax(tmp_path):
    wanted = [
        module
        for module in modules()
        if any(module == w or module.startswith(f"{w}.") for w in WITHOUT_JAX)
    ]
    assert "sdpo_jax.envs.base" in wanted
    code = f"""
import importlib, sys
for module in {wanted}:
    importlib.import_module(module)
    assert "jax" not in sys.modules, module
"""

    status, printed, _ = in_fresh_interpreter(code, tmp_path)

    assert status == 0, printed


def test_importing_has_no_effect(tmp_path):
    code = f"""
import importlib, threading
for module in {modules()}:
    importlib.import_module(module)
from jax._src import xla_bridge
assert not xla_bridge._backends, "a backend was initialised"
assert threading.active_count() == 1, threading.enumerate()
"""

    status, printed, made = in_fresh_interpreter(code, tmp_path)

    assert (status, printed, made) == (0, "", [])


def test_sandbox_imports_nothing_else_of_ours():
    inside = [path for path in files() if path.parts[:2] == ("sdpo_jax", "sandbox")]
    assert len(inside) > 10
    for path in inside:
        ours = [name for name in imports(path) if name.split(".")[0] in PACKAGES]
        assert all(name.startswith("sdpo_jax.sandbox") for name in ours), path


def test_server_of_the_sandbox_loads_the_sandbox_only(tmp_path):
    code = """
import sys
import sdpo_jax.sandbox.server
ours = [name for name in sys.modules if name.startswith("sdpo_jax.")]
assert len(ours) > 5
others = [name for name in ours if not name.startswith("sdpo_jax.sandbox")]
assert not others, others
"""

    status, printed, _ = in_fresh_interpreter(code, tmp_path)

    assert status == 0, printed


ROOMS = ["sandbox", "questions", "envs", "methods", "model", "rollout", "data"]


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_holds_more_than_three_tenths_of_the_package(room):
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in files()}

    inside = sum(n for path, n in lines.items() if path.parts[:2] == ("sdpo_jax", room))

    assert 0 < inside <= 0.3 * sum(lines.values())


@pytest.mark.parametrize("path", files(), ids=str)
def test_no_file_exceeds_400_lines(path):
    lines = len((ROOT / path).read_text().splitlines())

    assert lines <= 400, f"{path} has {lines} lines; part it into two nouns"
