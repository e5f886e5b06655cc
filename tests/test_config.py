import math

import pytest

from sdpo_jax import config, envs
from sdpo_jax.methods import METHODS


def valid():
    c = config.default()
    c.model.path = "somewhere"
    return c


def changed(**fields):
    c = valid()
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


def test_the_default_needs_only_a_model():
    config.validate(valid())
    with pytest.raises(ValueError, match="model.path is empty"):
        config.validate(config.default())


def test_a_new_field_is_refused():
    with pytest.raises(AttributeError):
        config.default().sdpo.topk = 3


def test_default_is_locked_and_its_fields_are_the_knobs():
    c = config.default()

    assert c.is_locked and c.env.sandbox.is_locked
    assert config.flat(c) == {f: knob.default for f, knob in config.KNOBS.items()}


@pytest.mark.parametrize("field", config.KNOBS)
def test_every_knob_accepts_its_default_and_has_a_meaning(field):
    knob = config.KNOBS[field]

    knob.check(field, knob.default)

    assert knob.meaning and "\n" not in knob.meaning + knob.allowed


def knobs_of(kind):
    """Fields whose default is of a type; flags are no numbers."""
    fields = config.flat(config.default()).items()
    return [field for field, value in fields if type(value) is kind]


CHOICES = [f for f in knobs_of(str) if config.KNOBS[f].allowed.startswith("one of ")]
NUMBERS = knobs_of(int) + knobs_of(float)


@pytest.mark.parametrize("field", CHOICES)
def test_every_choice_accepts_its_names_and_refuses_others(field):
    knob = config.KNOBS[field]
    for name in knob.allowed.removeprefix("one of ").split(" | "):
        knob.check(field, "http://host:8000" if name == "URL" else name)

    c = changed(**{field: "nonsense"})

    with pytest.raises(ValueError, match=rf"^{field}='nonsense': must be one of ") as e:
        config.validate(c)
    assert str(e.value).endswith(f"{knob.allowed}; meaning: {knob.meaning}")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("field", NUMBERS)
def test_every_number_is_bounded_and_no_message_is_longer_than_a_line(field):
    is_whole = isinstance(config.get(config.default(), field), int)
    outside = [-5, 2**40] + ([] if is_whole else [math.nan, math.inf, -math.inf])

    for value in outside:
        c = changed(**{field: value if is_whole else float(value)})
        with pytest.raises(ValueError, match=rf"^{field}=.*: must be in [\[({{]") as e:
            config.validate(c)
        knob = config.KNOBS[field]
        assert str(e.value).endswith(f"{knob.allowed}; meaning: {knob.meaning}")
        assert "\n" not in str(e.value)


def test_every_knob_is_listed_with_default_choices_and_meaning():
    listed = config.describe()

    assert (
        "--config.rollout.temperature=1.0 (in (0, 100])\n"
        "    sampling temperature\n" in listed
    )
    assert "--config.method='sdpo' (one of sdpo | grpo)\n" in listed
    assert listed.count("--config.") == len(config.KNOBS)


def test_choices_are_those_that_the_code_knows():
    allowed = lambda field: config.KNOBS[field].allowed.removeprefix("one of ")

    assert set(config.METHODS) == set(METHODS)
    assert allowed("method") == " | ".join(config.METHODS)


# A method's or task's own knobs, where they may be more than 8.
MORE = {"sdpo": 12, "grpo": 12}


def test_knobs_stay_few():
    methods = {name: len(own) for name, own in config.METHODS.items()}
    tasks = {
        name: len(config.default().env[name])
        for name in envs.TASKS
        if name in config.default().env
    }
    shared = len(config.KNOBS) - sum(methods.values()) - sum(tasks.values())

    assert shared <= 65
    for name, count in (methods | tasks).items():
        assert count <= MORE.get(name, 8), name


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"sdpo__mixture": 1.0}, "sdpo.mixture=1.0.*forward_kl or reverse_kl"),
        ({"sdpo__mixture": 0.0}, "sdpo.mixture=0.0"),
        (
            {"rollout__questions": 10, "step__questions": 4},
            "rollout.questions=10 is not a multiple of step.questions=4",
        ),
        (
            {"reprompt__max_length": 2048},
            "reprompt.max_length=2048 must exceed rollout.max_prompt=2048",
        ),
        (
            {"curriculum__min_pass_rate": 0.6, "curriculum__max_pass_rate": 0.4},
            "min_pass_rate=0.6 exceeds curriculum.max_pass_rate=0.4",
        ),
        ({"eval__pass_at": (1, 17)}, r"eval.pass_at=\(1, 17\).*eval.attempts=16"),
        ({"eval__pass_at": (0,)}, r"eval.pass_at=\(0,\)"),
    ],
)
def test_what_is_wrong_only_together_is_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        config.validate(changed(**fields))


TWICE = "a brace that stands for itself is written twice: {{ or }}"


@pytest.mark.parametrize(
    "field, value, fault",
    [
        ("template", "{promt}{solution}{feedback}", "{promt} is no placeholder"),
        ("template", "{solution}{feedback}", "{prompt} is missing"),
        ("template", "{prompt}{}", "{} is no placeholder"),
        ("template", "{prompt}{0}", "{0} is no placeholder"),
        ("template", "{prompt} { solution }", "{ solution } is no placeholder"),
        ("template", "{prompt.x}", "{prompt.x} is no placeholder"),
        ("template", "{prompt[0]}", "{prompt[0]} is no placeholder"),
        ("template", "{prompt!r}", "{prompt!r} is no placeholder"),
        ("template", "{prompt:>9}", "{prompt:>9} is no placeholder"),
        ("template", '{prompt} {"x": 1}', '{"x": 1} is no placeholder'),
        ("template", "{{prompt}}", "{prompt} is missing"),
        ("template", "{prompt}}", "Single '}' encountered in format string"),
        ("template", "{prompt} \\boxed{", "Single '{' encountered in format string"),
        ("template", "{prompt", "expected '}' before end of string"),
        ("solution_template", "", "{solution} is missing"),
        ("solution_template", "{prompt}{solution}", "{prompt} is no placeholder"),
        ("feedback_template", "{feedbck}", "{feedbck} is no placeholder"),
        ("feedback_template", "\n}{feedback}", "Single '}' encountered in format str"),
    ],
)
def test_template_that_cannot_be_filled_in_is_refused(field, value, fault):
    with pytest.raises(ValueError) as raised:
        config.validate(changed(**{f"reprompt__{field}": value}))

    message = str(raised.value)
    assert message.startswith(f"reprompt.{field}: {fault}")
    assert message.endswith(TWICE) and "\n" not in message


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"template": "{prompt}{feedback}"}, "no {solution}, which reprompt.demonstra"),
        ({"template": "{prompt}{solution}"}, "no {feedback}, which reprompt.show_feed"),
        (
            {"template": "{prompt}{solution}{{feedback}}"},
            "no {feedback}, which reprompt.show_feedback=without_solution shows; add",
        ),
        (
            {"template": "{prompt}{solution}{feedback}", "show_attempt": True},
            "no {attempt}, which reprompt.show_attempt=True shows; add it, or set",
        ),
    ],
)
def test_template_without_what_is_shown_is_refused(fields, told):
    c = changed(**{f"reprompt__{name}": value for name, value in fields.items()})

    with pytest.raises(ValueError, match="^reprompt.template has ") as raised:
        config.validate(c)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"template": "{prompt} {{}} {solution}{prompt}{feedback}"},
        {"solution_template": "{{{solution}}} {solution}"},
        {"template": "{prompt}{feedback}", "demonstration_from": "nobody"},
        {"template": "{prompt}{solution}", "show_feedback": "never"},
    ],
)
def test_template_with_doubled_braces_or_nothing_more_to_show_is_accepted(fields):
    config.validate(
        changed(**{f"reprompt__{name}": value for name, value in fields.items()})
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"sdpo__support": "sampled_token", "sdpo__divergence": "reverse_kl"},
        {"reprompt__demonstration_from": "nobody"},
        {"reprompt__show_feedback": "never"},
        {
            "method": "grpo",
            "reprompt__demonstration_from": "nobody",
            "reprompt__show_feedback": "never",
        },
        {"rollout__questions": 32, "step__questions": 1},
        {"eval__pass_at": (1, 4, 16)},
    ],
)
def test_what_makes_sense_together_is_accepted(fields):
    config.validate(changed(**fields))


@pytest.mark.parametrize(
    "mistyped, meant",
    [
        ("sdpo.topk", "sdpo.top_k"),
        ("learning_rate", "optimizer.learning_rate"),
        ("optimiser.learning_rate", "optimizer.learning_rate"),
        ("sdpo.divergance", "sdpo.divergence"),
        ("teacher.learning_rate", "optimizer.learning_rate"),
        ("zzz", None),
    ],
)
def test_nearest_names_a_known_field(mistyped, meant):
    fields = config.flat(config.default())

    found = config.nearest(mistyped, fields)

    assert found in fields
    assert meant in (None, found)


def test_flat_and_get_agree_on_every_field():
    c = config.default()

    fields = config.flat(c)

    assert len(fields) > 60
    assert all(config.get(c, field) is value for field, value in fields.items())


def test_nearest_prefers_the_same_leaf_in_the_most_similar_subtree():
    fields = config.flat(config.default())

    assert config.nearest("sdpp.top_k", fields) == "sdpo.top_k"
    assert config.nearest("topk", fields) == "sdpo.top_k"
    assert config.nearest("teacher.raet", fields) == "teacher.rate"
