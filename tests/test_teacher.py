import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdpo_jax import teacher

STUDENT = {"w": jnp.array([1.0, 3.0]), "b": jnp.array([[2.0]])}
OWN = {"w": jnp.array([0.0, 1.0]), "b": jnp.array([[-2.0]])}


@pytest.mark.parametrize("mode", ["ema", "trust_region", "frozen"])
def test_teacher_starts_as_a_copy_in_buffers_of_its_own(mode):
    student = jax.tree.map(jnp.copy, STUDENT)

    own = teacher.start(mode, student)
    # What donating the student's buffers does to them.
    jax.tree.map(lambda leaf: leaf.delete(), student)

    jax.tree.map(np.testing.assert_array_equal, own, STUDENT)


def test_live_teacher_has_no_weights_of_its_own():
    assert teacher.start("live", STUDENT) is None
    (reader,) = teacher.teacher_weights("live", STUDENT, None)
    assert reader is STUDENT


@pytest.mark.parametrize("mode", ["ema", "frozen"])
def test_one_teacher_reads_with_its_own_weights(mode):
    (reader,) = teacher.teacher_weights(mode, STUDENT, OWN)

    assert reader is OWN


def test_trust_region_reads_with_the_anchor_first_and_then_the_student():
    anchor, live = teacher.teacher_weights("trust_region", STUDENT, OWN)

    assert anchor is OWN and live is STUDENT


def test_ema_moves_by_the_rate_towards_the_student():
    moved = teacher.follow("ema", OWN, STUDENT, jnp.float32(0.25))

    np.testing.assert_allclose(moved["w"], [0.25, 1.5], rtol=1e-6)
    np.testing.assert_allclose(moved["b"], [[-1.0]], rtol=1e-6)


def test_ema_at_rate_zero_stays_bit_for_bit():
    third = jax.tree.map(lambda leaf: leaf / 3, OWN)

    stayed = teacher.follow("ema", third, STUDENT, jnp.float32(0))

    jax.tree.map(np.testing.assert_array_equal, stayed, third)


@pytest.mark.parametrize("mode", ["trust_region", "frozen", "live"])
def test_every_other_teacher_stays(mode):
    assert teacher.follow(mode, OWN, STUDENT, jnp.float32(0.5)) is OWN
