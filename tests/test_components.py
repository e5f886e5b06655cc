"""What is refused before anything is built, whoever checks it."""

import pytest

from sdpo_jax import components, config


def settings(**fields):
    c = config.default()
    c.model.path = "somewhere"
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"teacher__rate": 2.0}, "teacher.rate=2.0: must be in "),
        ({"env__name": "sokobahn"}, "env.name='sokobahn': must be one of "),
        ({"method": "grpo", "rollout__attempts": 1}, "rollout.attempts=1: GRPO"),
    ],
    ids=["a knob", "a task", "a method"],
)
def test_knobs_tasks_and_methods_are_checked(fields, message):
    components.validate(settings())
    with pytest.raises(ValueError, match=message):
        components.validate(settings(**fields))
    # Before a model is looked for: there is none.
    with pytest.raises(ValueError, match=message), components.build(settings(**fields)):
        pass
