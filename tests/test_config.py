import math

import pytest

from sdpo_jax import config, teacher
from sdpo_jax.methods import LOSSES, weights


def valid():
    c = config.default()
    c.model.path = "somewhere"
    return c


def changed(**fields):
    c = valid()
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


def numbers():
    """Every numeric field of the config, except flags."""
    for field, value in config.flat(config.default()).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield field


def test_the_default_needs_only_a_model():
    config.validate(valid())
    with pytest.raises(ValueError, match="model.path is empty"):
        config.validate(config.default())


def test_a_new_field_is_refused():
    with pytest.raises(AttributeError):
        config.default().sdpo.topk = 3


@pytest.mark.parametrize("field", config._CHOICES)
def test_every_choice_accepts_its_names_and_refuses_others(field):
    default = config.get(config.default(), field)
    assert default in config._CHOICES[field]

    c = changed(**{field: "nonsense"})

    with pytest.raises(ValueError, match=rf"^{field}='nonsense': must be one of "):
        config.validate(c)


@pytest.mark.parametrize("field", config._RANGES)
def test_every_range_refuses_what_lies_outside(field):
    low, high, low_allowed = config._RANGES[field]
    outside = [high * 2, low - 1] + ([] if low_allowed else [low])
    is_whole = isinstance(config.get(config.default(), field), int)
    if not is_whole:
        outside += [math.nan, math.inf, -math.inf]

    for value in outside:
        c = changed(**{field: value if is_whole else float(value)})
        with pytest.raises(ValueError, match=rf"^{field}=.*: must be "):
            config.validate(c)


# Checked by code of their own: what they may be depends on something else.
ELSEWHERE = {"sdpo.mixture", "mesh.data", "mesh.fsdp", "mesh.tensor"}


def test_every_number_is_checked():
    assert set(numbers()) - config._RANGES.keys() == ELSEWHERE


def test_every_checked_field_exists():
    known = config.flat(config.default()).keys()

    assert (config._CHOICES.keys() | config._RANGES.keys()) <= known


def test_choices_are_those_that_the_code_knows():
    assert set(config._CHOICES["method"]) == set(LOSSES)
    assert config._CHOICES["teacher.mode"] == tuple(teacher.MODES)
    assert config._CHOICES["step.aggregation"] == weights.AGGREGATIONS


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
            {"sdpo__support": "sampled_token"},
            "sampled_token.*set sdpo.divergence to reverse_kl, not jensen_shannon",
        ),
        (
            {"reprompt__max_length": 2048},
            "reprompt.max_length=2048 leaves no room beside a question of",
        ),
        (
            {"rollout__rows_at_once": 7},
            "rows_at_once=7 holds no whole question of rollout.attempts=8",
        ),
        ({"method": "grpo", "rollout__attempts": 1}, "rollout.attempts=1.*at least 2"),
        (
            {
                "reprompt__demonstration_from": "nobody",
                "reprompt__show_feedback": "never",
            },
            "shows the teacher nothing",
        ),
        (
            {"curriculum__min_pass_rate": 0.6, "curriculum__max_pass_rate": 0.4},
            "min_pass_rate=0.6 exceeds curriculum.max_pass_rate=0.4",
        ),
        ({"env__grader": "official", "env__name": "rules"}, "env.name=rules has the"),
        ({"env__grader": "official", "env__name": "privileged"}, "has the fixed"),
        ({"env__name": "function"}, "env.function='' .*is set with env.name=function"),
        ({"env__function": "a:b"}, "env.function='a:b' with env.name=programming"),
        ({"env__name": "judge", "env__judge__model": "m"}, "env.judge.url=''"),
        ({"env__name": "judge", "env__judge__url": "u"}, "env.judge.model=''"),
        ({"env__judge__url": "u"}, "env.judge.url='u' with env.name=programming"),
        ({"eval__pass_at": (1, 17)}, r"eval.pass_at=\(1, 17\).*eval.attempts=16"),
        ({"eval__pass_at": (0,)}, r"eval.pass_at=\(0,\)"),
    ],
)
def test_what_is_wrong_only_together_is_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        config.validate(changed(**fields))


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
        {"env__name": "tool_use", "env__grader": "official"},
        {"env__name": "function", "env__function": "a:b"},
        {"env__name": "judge", "env__judge__url": "u", "env__judge__model": "m"},
    ],
)
def test_what_makes_sense_together_is_accepted(fields):
    config.validate(changed(**fields))


def test_messages_are_one_line():
    for field in [*config._CHOICES, *config._RANGES]:
        wrong = "nonsense" if field in config._CHOICES else -5
        default = config.get(config.default(), field)
        wrong = float(wrong) if isinstance(default, float) else wrong
        with pytest.raises(ValueError) as told:
            config.validate(changed(**{field: wrong}))
        assert "\n" not in str(told.value)


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
