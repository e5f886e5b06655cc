"""What is refused before anything is built, whoever checks it."""

import shutil

import pytest

from sdpo_jax import components, config
from tests.data.test_tokenizer import unigram, write
from tests.model.checkpoints import TIED


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


def test_tokens_that_the_embedding_has_no_row_for_are_refused(tmp_path):
    # 128 rows; the tokenizer has 359 tokens.
    folder = write(shutil.copytree(TIED, tmp_path / "model"), unigram())
    lengths = dict(rollout__max_prompt=32, rollout__max_response=32)
    c = settings(model__path=str(folder), reprompt__max_length=64, **lengths)
    c.sdpo.top_k = 20

    with pytest.raises(ValueError, match="'</think>', but the embedding has 128 rows"):
        with components.build(c, environment=object()):
            pass
