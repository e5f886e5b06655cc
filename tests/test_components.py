"""What is refused before anything is built, whoever checks it."""

import pathlib
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


BASE = pathlib.Path(__file__).parents[1] / "experiments" / "quickstart" / "base"


def test_an_evaluation_is_not_refused_for_what_only_training_needs():
    # 4 x 3 rows on 8 devices, a reprompt beyond the 1,024 positions of the model, and a
    # top K of more than its 640 tokens.
    c = settings(model__path=str(BASE), reprompt__max_length=5000, sdpo__top_k=700)
    c.rollout.questions = c.step.questions = 4
    c.rollout.attempts, c.rollout.max_prompt, c.rollout.max_response = 3, 8, 8

    with pytest.raises(ValueError, match="12 rows do not divide"):
        with components.build(c, environment=object()):
            pass
    with components.build(c, environment=object(), trains=False) as built:
        assert built.arch.vocab == 640


def test_a_reprompt_is_measured_only_where_a_teacher_reads_it():
    c = settings(model__path=str(BASE), reprompt__max_length=5000, method="grpo")
    c.rollout.max_prompt, c.rollout.max_response = 8, 8

    with components.build(c, environment=object()):
        pass
    c.method = "sdpo"
    told = (
        r"^reprompt.max_length=5000 \+ rollout.max_response=8 exceeds the model's 1024"
    )
    with pytest.raises(ValueError, match=told):
        with components.build(c, environment=object()):
            pass
