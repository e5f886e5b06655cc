"""The bookkeeping of the quickstart's study; the runs themselves take hours."""

import json

import pytest

from experiments.quickstart import study
from experiments.quickstart_ablations import run as ablations
from sdpo_jax import metrics, sweep

# ml_collections reads run files the old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def summary(last, best=None, update=20):
    part = lambda value: (
        {"validation": {"pass@1": value, "pass@4": value}}
        | {"heldout": {"pass@1": value}}
    )
    best = part(last if best is None else best) | {"update": update}
    told = {"generations": 64 * 20, "seconds": 9.0, "base": part(0.0)}
    return told | {"last": part(last), "best": best}


@pytest.fixture
def trained(monkeypatch):
    """What the sweep was asked to train; each run writes its curve and ends."""
    asked = []

    def run_all(runs, workdir, jobs, after_each):
        asked.append([run.name for run in runs])
        summaries = {}
        after_each(summaries)
        for run in runs:
            folder = workdir / run.name
            folder.mkdir(parents=True)
            lines = [{"step": 0, "validation/pass@1": 0.0}, {"step": 5}]
            lines += [{"step": 10, "validation/pass@1": 0.5}]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / metrics.METRICS).write_text(text)
            failed = run.overrides.get("train.updates") == "13"
            summaries[run.name] = None if failed else summary(0.5)
            after_each(summaries)
        return summaries

    monkeypatch.setattr(sweep, "run_all", run_all)
    return asked


def runs(tmp_path, *updates):
    make = lambda n: study.make_run(
        f"r{n}", "sdpo", 1, tmp_path, {"train.updates": str(n)}
    )
    return [make(n) for n in updates]


def test_kept_records_are_not_trained_again_unless_their_setting_differs(
    tmp_path, trained
):
    kept = tmp_path / "results.json"

    first = study.complete(runs(tmp_path, 7, 8), tmp_path / "a", 2, kept)
    again = study.complete(runs(tmp_path, 7, 8, 9), tmp_path / "b", 2, kept)
    records = json.loads(kept.read_text())
    records["r8"]["setting"]["train.updates"] = 80
    kept.write_text(json.dumps(records))
    study.complete(runs(tmp_path, 7, 8, 9), tmp_path / "c", 2, kept)

    assert trained == [["r7", "r8"], ["r9"], ["r8"]]
    assert again[:2] == json.loads(json.dumps(first))
    assert first[0]["validation"] == {0: 0.0, 10: 0.5}
    setting = first[0]["setting"]
    assert setting["seed"] == 1 and setting["train.updates"] == 7
    # Nothing that another checkout or machine would have otherwise.
    assert str(tmp_path) not in json.dumps(first) and "model.path" not in setting
    assert {p.name for p in (tmp_path / "questions" / "1").iterdir()} == {
        f"{split}.jsonl" for split in ("train", "validation", "heldout")
    }


def test_records_of_the_checkout_are_those_of_its_configs(tmp_path):
    shipped = ablations.runs_of("shipped", {}, (1, 2, 3), tmp_path)
    records = study.kept_records(ablations.HERE / "results.json")

    for run in shipped:
        assert records[run.name]["setting"] == study.setting(run)


def test_a_failed_run_is_told_and_the_others_are_kept(tmp_path, trained):
    kept = tmp_path / "results.json"

    with pytest.raises(RuntimeError, match="1 runs failed.*r13/log.txt"):
        study.complete(runs(tmp_path, 7, 13, 8), tmp_path / "a", 2, kept)

    assert json.loads(kept.read_text()).keys() == {"r7", "r8"}


def test_best_by_validation_is_chosen_and_reaching_is_counted_in_generations(tmp_path):
    records = [
        {
            "setting": {"optimizer.learning_rate": rate, "step.questions": 2},
            "summary": summary(score),
            "validation": {"0": 0.0, "10": score, "20": 0.9},
        }
        for rate, score in [(1e-4, 0.2), (5e-4, 0.6), (1e-3, 0.4)]
    ]

    chosen = study.chosen(records)
    assert chosen == {"optimizer.learning_rate": "0.0005", "step.questions": "2"}
    assert study.generations_to_reach(records[1], 0.6) == 640
    assert study.generations_to_reach(records[0], 0.6) == 1280
    assert study.generations_to_reach(records[0], 0.95) is None


def test_tables_and_picture_show_every_part(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(study, "HERE", tmp_path)

    results = study.study(tmp_path / "runs", 2)

    tables = study.tables(results)
    assert "| SDPO, 4 steps per batch | 0.500 | 0.500 |" in tables
    assert "| GRPO, 5 seeds | 1,280 | 0.000 [0.000, 0.000] | 0.500" in tables
    assert study.sentences(results).count("GRPO, seed") == 5
    assert (tmp_path / "study.png").stat().st_size > 10_000
    tuning, fresh, longer = trained
    assert len(tuning) == 2 * len(study.RATES) * len(study.STEP_QUESTIONS)
    assert len(fresh) == len(longer) == 2 * len(study.FRESH_SEEDS)


def test_every_ablation_is_a_valid_config_and_no_setting_runs_twice(tmp_path):
    seen = {}
    for settings in ablations.TABLES.values():
        for setting, fields in settings.items():
            (run,) = ablations.runs_of(setting, fields, (1,), tmp_path)
            sweep.load(run)
            assert seen.setdefault(run.name, run.overrides) == run.overrides
    assert len(set(map(str, seen.values()))) == len(seen)
