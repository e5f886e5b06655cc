"""What a run keeps when something ends it between two updates, or in one."""

import jax.numpy as jnp
import pytest

from sdpo_jax import config
from sdpo_jax.interrupt import Interrupted
from sdpo_jax.learner import NotFiniteError
from sdpo_jax.run_checkpoints import Progress, RunCheckpoints
from sdpo_jax.train_state import TrainState


class Learner:
    """One number for a state."""

    def __init__(self):
        one = jnp.float32(1)
        self.state = TrainState(jnp.int32(0), one, one, None)


@pytest.fixture
def checkpoints(tmp_path):
    with RunCheckpoints(config.default(), tmp_path) as open_checkpoints:
        yield open_checkpoints


def end(checkpoints, update, error, scope):
    with pytest.raises(Exception) as raised, scope(Learner(), Progress(update)):
        raise error
    return raised.value


def test_signal_saves_the_last_update_and_says_which(checkpoints):
    error = end(checkpoints, 3, Interrupted("now"), checkpoints.keep)

    assert isinstance(error, Interrupted) and checkpoints.saved == 3
    assert str(error) == "stopped after update 3, saved"


def test_signal_before_the_first_update_promises_nothing(checkpoints):
    error = end(checkpoints, 0, Interrupted("now"), checkpoints.keep)

    assert str(error) == "stopped before the first update was complete"


@pytest.mark.parametrize("update, saved", [(0, None), (2, 2)])
def test_bad_input_saves_what_updates_there_were(checkpoints, update, saved):
    error = end(checkpoints, update, ValueError("a prompt"), checkpoints.keep)

    assert str(error) == "a prompt" and checkpoints.saved == saved


@pytest.mark.parametrize("optimizer_step, saved", [(0, 2), (1, None)])
def test_state_in_the_middle_of_a_batch_is_never_saved(
    checkpoints, optimizer_step, saved
):
    error = NotFiniteError("loss=nan", optimizer_step)

    raised = end(checkpoints, 2, error, checkpoints.refuse_not_finite)

    assert isinstance(raised, FloatingPointError) and checkpoints.saved == saved
    assert f"update 3, optimiser step {optimizer_step + 1} of it" in str(raised)


def test_other_errors_in_an_update_save_nothing(checkpoints):
    end(checkpoints, 2, ValueError("odd"), checkpoints.refuse_not_finite)

    assert checkpoints.saved is None
