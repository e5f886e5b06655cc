"""The command line: every mistake is one line that names what to change."""

import os
import pathlib
import subprocess
import sys

import pytest

from sdpo_jax import run_file

ROOT = pathlib.Path(__file__).parents[1]
RUN_FILE = "--config=configs/quickstart.py"


@pytest.fixture(scope="module")
def without_jax(tmp_path_factory):
    """A folder that ends every process that imports JAX."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "jax.py").write_text("raise SystemExit('JAX was imported')\n")
    return folder


def command(*arguments, path="", cwd=ROOT):
    path = os.pathsep.join([str(ROOT), str(path)])
    done = subprocess.run(
        [sys.executable, "-m", "sdpo_jax.main", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


MISTAKES = {
    "no run file": ([], "--config is missing; usage: --config=configs/<run>.py"),
    "a run file without its value": (["--config"], "Missing value for flag --config"),
    "a folder without a run": (
        ["--job=export", "--workdir=tests"],
        "tests is no run folder: it has no config.json",
    ),
    "an empty run file name": (["--config="], "Path to config file is an empty string"),
    "a missing run file": (
        ["--config=configs/quickstrat.py"],
        "No such file or directory: 'configs/quickstrat.py'",
    ),
    "a folder": (["--config=configs"], "Is a directory: 'configs'"),
    "a mistyped leaf": (
        [RUN_FILE, "--config.sdpo.topk=3"],
        "sdpo.topk: no such config field; nearest: sdpo.top_k = 100",
    ),
    "a mistyped group": (
        [RUN_FILE, "--config.optimiser.learning_rate=3"],
        "optimiser.learning_rate: no such config field; nearest: "
        "optimizer.learning_rate = 1e-05",
    ),
    "a leaf without its group": (
        [RUN_FILE, "--config.learning_rate", "0.1"],
        "learning_rate: no such config field; nearest: optimizer.learning_rate",
    ),
    "text for a number": (
        [RUN_FILE, "--config.sdpo.top_k=many"],
        "flag --config.sdpo.top_k=many: invalid literal for int()",
    ),
    "a fraction for a whole number": (
        [RUN_FILE, "--config.sdpo.top_k=1.5"],
        "flag --config.sdpo.top_k=1.5: invalid literal for int()",
    ),
    "a number for a group": (
        [RUN_FILE, "--config.sdpo=3"],
        "--config.sdpo: is a group of fields: sdpo.divergence, sdpo.importance",
    ),
    "neither true nor false": (
        [RUN_FILE, "--config.sdpo.keep_tail=maybe"],
        "flag --config.sdpo.keep_tail=maybe: ",
    ),
    "a name that is not among the choices": (
        [RUN_FILE, "--config.teacher.mode=emma"],
        "teacher.mode='emma': must be one of ema | trust_region | ",
    ),
    "a number out of range": (
        [RUN_FILE, "--config.rollout.attempts=-1"],
        "rollout.attempts=-1: must be in [1, 2^16]; meaning: attempts per question",
    ),
    "what is wrong only together": (
        [RUN_FILE, "--config.step.questions=3"],
        "rollout.questions=8 is not a multiple of step.questions=3",
    ),
    "an unknown task": (
        [RUN_FILE, "--config.env.name=sokobahn"],
        "env.name='sokobahn': must be one of programming | ",
    ),
    "an option of another task": (
        [RUN_FILE, "--config.env.judge.model=m"],
        "env.judge.model='m' (leave it at ''): env.name=programming does not read",
    ),
    "a checkpoint to train from": (
        [RUN_FILE, "--checkpoint=best"],
        "--checkpoint is not read by --job=train, only by --job=evaluate and export",
    ),
    "an evaluation of a folder without a run": (
        ["--job=evaluate", "--workdir=tests"],
        "tests is no run folder: it has no config.json",
    ),
    "an export's flag for an evaluation": (
        [RUN_FILE, "--job=evaluate", "--export_dtype=float32"],
        "--export_dtype is not read by --job=evaluate, only by --job=export",
    ),
    "a place to export for training": (
        [RUN_FILE, "--export_path=x"],
        "--export_path is not read by --job=train, only by --job=export; leave it out",
    ),
    "a project of wandb for an export": (
        [RUN_FILE, "--job=export", "--wandb_project=x"],
        "--wandb_project is not read by --job=export, only by --job=train",
    ),
    "a limit on training for an evaluation": (
        [RUN_FILE, "--job=evaluate", "--config.train.updates=3"],
        "--config.train.updates is not read by --job=evaluate; leave it out",
    ),
    "a folder that is not there as model": (
        [RUN_FILE, "--config.model.path=runs/no/such"],
        "'runs/no/such': there is no such folder, and a model of the Hugging Face hub",
    ),
    "an unknown flag": ([RUN_FILE, "--workdri=x"], "Unknown command line flag 'workd"),
    "an unknown job": (
        [RUN_FILE, "--job=trian"],
        "flag --job=trian: value should be one of <train|",
    ),
    "a stray word": ([RUN_FILE, "train"], "'train' is not a flag; usage: --config="),
}


@pytest.mark.parametrize("arguments, told", MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_line_before_jax_is_loaded(arguments, told, without_jax):
    status, out, err = command(*arguments, path=without_jax)

    assert status == 1 and out == ""
    assert err.startswith("error: ") and told in err
    assert err.count("\n") == 1


BODIES = {
    "a mistyped leaf": (
        "    c = config.default()\n    c.sdpo.topk = 3\n    return c",
        "run.py:4: topk: no such config field; nearest: sdpo.top_k = 100",
    ),
    "a mistyped group": (
        "    c = config.default()\n    c.sdppo.top_k = 3\n    return c",
        "run.py:4: sdppo: no such config field; nearest: sdpo.",
    ),
    "a value of another type": (
        "    c = config.default()\n    c.sdpo.top_k = 'all'\n    return c",
        "run.py:4: Could not override field 'top_k'",
    ),
    "an unknown name": (
        "    return cofnig.default()",
        "run.py:3: name 'cofnig' is not",
    ),
    "a missing module": ("    import no_such_module", "run.py:3: No module named 'no_"),
    "a missing bracket": ("    return (", "run.py:3: '(' was never closed"),
    "no config returned": (
        "    return 3",
        "get_config() returned 3, expected config.d",
    ),
    "no model": ("    return config.default()", "model.path is empty: give a Hugging"),
    "a bad value": (
        "    c = config.default()\n    c.method = 'ppo'\n    return c",
        "method='ppo': must be one of sdpo | grpo; meaning: ",
    ),
}


@pytest.mark.parametrize("body, told", BODIES.values(), ids=BODIES)
def test_mistake_in_a_run_file_is_one_line(body, told, without_jax, tmp_path):
    file = tmp_path / "run.py"
    file.write_text(f"from sdpo_jax import config\ndef get_config():\n{body}\n")

    status, out, err = command(f"--config={file}", path=without_jax)

    assert status == 1 and out == ""
    assert err.startswith("error: ") and told in err
    assert err.count("\n") == 1


OTHER_FILES = {
    "run.yaml": (b"a: 1\n", "run.yaml is YAML; a run file is Python with get_conf"),
    "run.json": (b"{}", "run.json is JSON; a run file is Python with get_config()"),
    "empty.py": (b"", "empty.py defines no get_config(); a run file is Python with"),
    "other.py": (b"c = 1\n", "other.py defines no get_config(); a run file is"),
    "utf_16.py": ("get_config".encode("utf-16"), "is text in UTF-16, expected text "),
    "latin_1.py": (b"def get_config():\n  return '\xe9'", "latin_1.py, line 2: byte"),
    "binary.py": (b"PK\x03\x04", "binary.py is a zip archive or a spreadsheet"),
    "config.json": (
        b'{"seed": 1}',
        "is of a run: its config is read by --config=",
    ),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_file_that_is_no_run_file_is_named_with_the_remedy(name, tmp_path):
    content, told = OTHER_FILES[name]
    (tmp_path / name).write_bytes(content)

    for given in (["--config", tmp_path / name], [f"--config={tmp_path / name}:x"]):
        with pytest.raises(ValueError) as raised:
            run_file.check(["main", *map(str, given)])
        assert told in str(raised.value) and "\n" not in str(raised.value)


def test_run_folder_as_run_file_is_told_what_reads_it(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 1}')
    reader = pathlib.Path(run_file.__file__).with_name("run_config.py")

    with pytest.raises(ValueError, match=f"--config={reader}:{tmp_path}$"):
        run_file.check(["main", f"--config={tmp_path}"])

    run_file.check(["main", f"--config={reader}:{tmp_path}"])


@pytest.mark.parametrize(
    "job, fields",
    [
        ("train", ["train.updates", "eval.top_p", "sdpo.top_k", "reprompt.template"]),
        ("evaluate", ["eval.top_p", "rollout.max_prompt", "reprompt.success_score"]),
        ("evaluate", ["env.train", "lora.rank", "model.path", "mesh.data", "seed"]),
        ("export", ["model.path", "mesh.fsdp", "lora.rank", "teacher.mode", "method"]),
    ],
)
def test_fields_that_a_job_reads_may_be_given(job, fields):
    run_file.check_overrides(
        ["main", *(f"--config.{f}=1" for f in fields)], job, "sdpo"
    )


@pytest.mark.parametrize(
    "job, arguments, told",
    [
        ("evaluate", ["--config.rollout.top_p=1"], "evaluate; it reads eval.top_p; le"),
        (
            "evaluate",
            ["--config.reprompt.template", "x"],
            "read by --job=evaluate; lea",
        ),
        ("evaluate", ["-config.curriculum.min_pass_rate=0"], "read by --job=evaluate;"),
        ("evaluate", ["--config.rollout.attempts=1"], "; it reads eval.attempts; leav"),
        ("evaluate", ["--config.step.questions=1"], "read by --job=evaluate; leave it"),
        ("evaluate", ["--noconfig.reprompt.show_attempt"], "show_attempt is not read"),
        ("evaluate", ["--config.teacher.mode=live"], "read by --job=evaluate; leave i"),
        ("evaluate", ["--config.grpo.clip_low=1"], "read by --job=evaluate; leave it "),
        ("export", ["--config.rollout.top_p=1"], "not read by --job=export; leave it "),
        ("export", ["--config.teacher.rate=1"], "--config.teacher.rate is not read by"),
        ("export", ["--config.model.remat=layer"], "--config.model.remat is not read "),
        ("export", ["--config.seed=1"], "--config.seed is not read by --job=export; l"),
        ("export", ["--config.grpo.clip_low=1"], "--config.grpo.clip_low is not read"),
        (
            "train",
            ["--config.sdpo.top_k=1"],
            "sdpo.top_k is not read with method=grpo;",
        ),
        ("export", ["--config.env.judge.url", "x"], "--config.env.judge.url is not r"),
    ],
)
def test_fields_that_a_job_ignores_are_refused(job, arguments, told):
    with pytest.raises(ValueError) as raised:
        run_file.check_overrides(["main", "--config=run.py", *arguments], job, "grpo")
    assert told in str(raised.value)


def test_help_shows_the_commands_and_the_flags(without_jax):
    status, out, err = command("--help", path=without_jax)

    assert status == 0 and err == ""
    assert (
        "python -m sdpo_jax.main --config=configs/quickstart.py --job=evaluate" in out
    )
    assert "--workdir" in out and "--may_change" in out
    assert "--config.sdpo.top_k=100 (in [1, 2^20])\n    the student's like" in out


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--config.model.path=/no/such/model"], "/no/such/model"),
        (["--config.env.train=/no/such/file.jsonl"], "/no/such/file.jsonl"),
        (["--config.mesh.fsdp=3"], "mesh.fsdp=3 x mesh.tensor=1 does not cover the "),
        (
            ["--config.model.attention=splash"],
            "model.attention=splash: splash attention runs on TPUs only, not on cpu; "
            "set model.attention to auto or xla",
        ),
        (
            ["--may_change=sdpo.topk"],
            "--may_change=sdpo.topk: no such field; nearest: ",
        ),
        (["--multi_host"], "--multi_host: found no hosts to join"),
        (["--workdir=gs://bucket/run"], "mount the bucket"),
        (["--workdir=/dev/null/run"], "Not a directory: '/dev/null/run'"),
    ],
)
def test_setting_that_cannot_work_is_one_line(arguments, told, tmp_path):
    workdir = tmp_path / "a run"

    said = command(RUN_FILE, f"--workdir={workdir}", *arguments)

    check_is_one_line(told, *said)
    assert not (workdir / "metrics.jsonl").exists()


def check_is_one_line(told, status, out, err):
    assert status == 1 and out == ""
    lines = [
        line for line in err.splitlines() if not line.lower().startswith("sandbox")
    ]
    assert len(lines) == 1 and lines[0].startswith("error: ") and told in lines[0]


def test_sandbox_that_this_machine_cannot_have_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    said = command(RUN_FILE, f"--workdir={tmp_path}", "--config.env.sandbox.tier=A")

    check_is_one_line("tier A: bwrap is not installed). Install bubblewrap", *said)
