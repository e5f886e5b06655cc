import pytest

from sdpo_jax import sweep_grid


@pytest.mark.parametrize(
    "argument, values",
    [
        ("seed=0,1,2", ["0", "1", "2"]),
        ("seed=0", ["0"]),
        ("model.path=", [""]),
        ("eval.pass_at=(1,4)", ["(1,4)"]),
        ("eval.pass_at=(1,4),(1,2),1", ["(1,4)", "(1,2)", "1"]),
        ("eval.pass_at=[1,4],[1]", ["[1,4]", "[1]"]),
        ('env.train="a,b",c', ["a,b", "c"]),
        ("model.path=a=b,c", ["a=b", "c"]),
    ],
)
def test_values_are_split_at_commas_outside_brackets_and_quotes(argument, values):
    field = argument.partition("=")[0]

    assert sweep_grid.parse_axes([argument]) == {field: values}


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["seed"], "'seed' is not an axis; expected field=value,value"),
        (["--config.seed=1"], "'--config.seed=1' is not an axis"),
        (["seed=1", "seed=2"], "seed is given twice; join its values by commas"),
    ],
)
def test_argument_that_is_no_axis_is_refused(arguments, told):
    with pytest.raises(ValueError) as error:
        sweep_grid.parse_axes(arguments)

    assert told in str(error.value)


def test_grid_holds_every_combination_and_varies_the_last_field_fastest():
    axes = {"seed": ["0", "1"], "method": ["sdpo"], "sdpo.top_k": ["5", "6"]}

    cells = sweep_grid.grid(axes)

    assert [(c["seed"], c["sdpo.top_k"]) for c in cells] == [
        ("0", "5"),
        ("0", "6"),
        ("1", "5"),
        ("1", "6"),
    ]
    assert all(c["method"] == "sdpo" for c in cells)
    assert sweep_grid.grid({}) == [{}]


@pytest.mark.parametrize(
    "overrides, name",
    [
        ({}, "run"),
        ({"optimizer.learning_rate": "1e-4", "seed": "0"}, "learning_rate=1e-4,seed=0"),
        (
            {"sdpo.top_k": "5", "eval.top_k": "6", "seed": "0"},
            "sdpo.top_k=5,eval.top_k=6,seed=0",
        ),
        ({"eval.pass_at": "(1, 4)"}, "pass_at=(1,4)"),
        ({"env.train": "../a b/c.jsonl"}, "train=..%2Fab%2Fc.jsonl"),
        ({"env.name": ""}, "name="),
    ],
)
def test_name_is_short_unambiguous_and_a_folder_name(overrides, name, tmp_path):
    found = sweep_grid.name_of(overrides, list(overrides))

    assert found == name
    (tmp_path / found).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def result(rate, seed, *scores):
    """A line of `results.json`; a failed run without scores."""
    overrides = {"optimizer.learning_rate": rate, "seed": seed, "method": "sdpo"}
    if not scores:
        return {"overrides": overrides, "summary": None}
    validation, heldout, of_best = scores
    splits = {"validation": {"pass@1": validation}, "heldout": {"pass@1": heldout}}
    best = {"update": 1, "validation": {}, "heldout": {"pass@1": of_best}}
    summary = {"seconds": 10.0 + int(seed), "last": splits, "best": best}
    return {"overrides": overrides, "summary": summary}


def cells_of(text):
    """The table's lines, cut where two spaces or more are."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in text.splitlines()
    ]


def test_table_folds_seeds_and_puts_the_best_setting_first():
    results = [
        result("1e-4", "0", 0.1, 0.2, 0.3),
        result("1e-4", "1", 0.3, 0.4, 0.5),
        result("1e-4", "2", 0.2, 0.2, 0.2),
        result("1e-3", "0", 0.9, 0.8, 0.7),
        result("1e-3", "1"),
        result("1e-2", "0"),
    ]

    lines = cells_of(sweep_grid.table(results))

    assert lines[1:] == [
        ["learning_rate=1e-3", "1 of 2", "0.900", "0.800", "0.700", "10"],
        [
            "learning_rate=1e-4",
            "3",
            "0.200 [0.100, 0.300]",
            "0.200 [0.200, 0.400]",
            "0.300 [0.200, 0.500]",
            "11",
        ],
        ["learning_rate=1e-2", "0 of 1", "-", "-", "-", "-"],
    ]


def test_table_shows_a_dash_for_what_was_not_evaluated():
    found = result("1e-4", "0", 0.1, 0.2, 0.3)
    found["summary"]["last"] = {"validation": {"pass@2": 0.5}, "heldout": {}}

    (_, line) = cells_of(sweep_grid.table([found]))

    assert line == ["run", "1", "-", "-", "0.300", "10"]
