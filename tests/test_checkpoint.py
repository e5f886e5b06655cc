import functools
import json
import logging
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sdpo_jax import checkpoint, manifest
from tests import compiling

EXTRA = {"position": 7, "seed": 3, "best": 0.1, "digest": "ab", "empty": None}


@flax.struct.dataclass
class State:
    step: jax.Array
    student: dict
    teacher: dict
    optimizer: optax.OptState
    key: jax.Array


@pytest.fixture
def checkpoints(tmp_path):
    opened = checkpoint.Checkpoints(tmp_path / "checkpoints")
    yield opened
    opened.close()


def abstract(state):
    """Shapes, dtypes and shardings of a state's arrays, without the arrays."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def make_mesh(rows, columns):
    return jax.make_mesh(
        (rows, columns),
        ("data", "model"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )


@functools.cache
def make_state(step=0):
    """A small training state with every kind of leaf, different at every step."""
    student = {
        "layers": [{"kernel": jnp.arange(32.0).reshape(8, 4) / 7 + step}],
        "scale": jnp.linspace(-3, 3, 8).astype(jnp.bfloat16),
        "odd": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45], jnp.float32),
        "none": jnp.zeros((0, 4)),
    }
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = State(
        step=jnp.asarray(step, jnp.int32),
        student=student,
        teacher=jax.tree.map(lambda x: x + 1, student),
        optimizer=transform.init(student),
        key=jax.random.fold_in(jax.random.key(0), step),
    )
    return jax.device_put(state, shardings(state, make_mesh(4, 2)))


def shardings(state, mesh):
    def choose(x):
        return NamedSharding(mesh, P("data", "model") if x.shape == (8, 4) else P())

    return jax.tree.map(choose, state)


def abstract_on(mesh, state):
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        shardings(state, mesh),
    )


def bits(leaf):
    """Dtype, shape and raw bytes, so that NaN and -0.0 count too."""
    if is_key(leaf):
        return leaf.dtype.name, bits(jax.random.key_data(leaf))
    return leaf.dtype.name, leaf.shape, np.asarray(leaf).tobytes()


def assert_same_bits(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    assert jax.tree.map(bits, tree) == jax.tree.map(bits, expected)


def save_steps(checkpoints, steps, scores=()):
    scores = dict(scores)
    for step in steps:
        extra = {**EXTRA, "position": step}
        checkpoints.save(step, make_state(step), extra, score=scores.get(step))
    checkpoints.wait()


def folder_of(checkpoints, step):
    return checkpoints._paths()[step]


def biggest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=os.path.getsize)


def test_restored_state_and_extra_are_bit_identical(checkpoints):
    state = make_state(5)

    checkpoints.save(5, state, EXTRA)
    restored, extra, step = checkpoints.restore(abstract(state))

    assert_same_bits(restored, state)
    assert (extra, step) == (EXTRA, 5)
    assert restored.student["none"].shape == (0, 4)


def test_restored_random_key_draws_the_same_numbers(checkpoints):
    state = {"key": jax.random.key(11), "rbg": jax.random.key(12, impl="rbg")}

    checkpoints.save(1, state, {})
    restored, _, _ = checkpoints.restore(abstract(state))

    for name, key in state.items():
        drawn = jax.random.uniform(restored[name], (8,))
        np.testing.assert_array_equal(drawn, jax.random.uniform(key, (8,)))


@pytest.mark.parametrize("rows, columns", [(2, 1), (2, 4), (8, 1), (1, 1)])
def test_a_state_comes_back_bit_identical_on_another_mesh(checkpoints, rows, columns):
    state = make_state(2)
    wanted = abstract_on(make_mesh(rows, columns), state)

    checkpoints.save(2, state, EXTRA)
    restored, _, _ = checkpoints.restore(wanted)

    assert_same_bits(restored, state)
    assert [x.sharding for x in jax.tree.leaves(restored)] == [
        x.sharding for x in jax.tree.leaves(wanted)
    ]


def test_a_state_may_be_overwritten_while_it_is_being_saved(checkpoints):
    size = 1 << 22
    state = {"a": jax.device_put(jnp.arange(size), jax.devices()[0])}
    overwrite = jax.jit(lambda s: {"a": s["a"] * 0 - 1}, donate_argnums=0)
    shapes = abstract(state)

    checkpoints.save(1, state, {})
    jax.block_until_ready(overwrite(state))
    restored, _, _ = checkpoints.restore(shapes)

    np.testing.assert_array_equal(restored["a"], np.arange(size))


def test_restored_arrays_own_their_buffers_and_can_be_donated(checkpoints):
    everywhere = NamedSharding(make_mesh(8, 1), P())
    state = {"state": make_state(1), "wide": jnp.arange(1 << 14, device=everywhere)}
    checkpoints.save(1, state, {})
    restored, _, _ = checkpoints.restore(abstract(state))
    # An array without elements has no buffer to give.
    restored = [leaf for leaf in jax.tree.leaves(restored) if leaf.size]
    # Keys give no pointers: looking at their data would copy them.
    before = [pointers_of(leaf) for leaf in restored if not is_key(leaf)]
    update = jax.jit(
        lambda leaves: [leaf if is_key(leaf) else leaf + 1 for leaf in leaves],
        donate_argnums=0,
        out_shardings=[leaf.sharding for leaf in restored],
    )

    with jax.numpy_dtype_promotion("standard"):
        after = jax.block_until_ready(update(restored))

    assert len(set(sum(before, []))) == len(sum(before, []))
    assert before == [pointers_of(leaf) for leaf in after if not is_key(leaf)]
    assert all(leaf.is_deleted() for leaf in restored)


def test_saving_and_restoring_make_no_implicit_transfer(checkpoints):
    state = make_state(1)

    with jax.transfer_guard("disallow"):
        checkpoints.save(1, state, {})
        restored, _, _ = checkpoints.restore(abstract(state))

    assert_same_bits(restored, state)


def is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def pointers_of(leaf):
    return [shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards]


@pytest.mark.parametrize("part", ["student", "student/layers/0", "key", "optimizer/1"])
def test_one_part_of_the_best_step_comes_back_alone(checkpoints, part):
    save_steps(checkpoints, [1, 2, 3], {1: 0.9, 2: 0.1, 3: 0.2})
    expected = make_state(1)
    expected = {
        "student": expected.student,
        "student/layers/0": expected.student["layers"][0],
        "key": expected.key,
        "optimizer/1": expected.optimizer[1],
    }[part]

    restored = checkpoints.restore_part(part, abstract(expected), checkpoints.best())

    assert_same_bits(restored, expected)


def test_a_part_reads_no_more_than_it_needs(checkpoints):
    state = {"small": jnp.ones(3), "big": jnp.ones((1024, 1024))}
    checkpoints.save(1, state, {})
    checkpoints.wait()
    before = len(jax.live_arrays())

    part = checkpoints.restore_part("small", abstract(state["small"]))

    assert len(jax.live_arrays()) == before + 1
    np.testing.assert_array_equal(part, [1, 1, 1])


def changed(state, **changes):
    return state.replace(student={**state.student, **changes})


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"scale": jnp.zeros(9, jnp.bfloat16)},
            r"first at student/scale: .*bfloat16 of shape \(8,\).*shape \(9,\)",
        ),
        (
            {"scale": jnp.zeros(8, jnp.float32)},
            r"first at student/scale: .*bfloat16 of shape.*float32 of shape",
        ),
        ({"bias": jnp.zeros(8)}, r"first at student/bias: .*has nothing, .*float32"),
        (
            {"layers": []},
            r"first at student/layers/0/kernel: .*\(8, 4\).*has nothing",
        ),
    ],
)
def test_a_state_that_differs_is_refused_naming_the_first_path(
    checkpoints, changes, words
):
    save_steps(checkpoints, [1])
    wanted = abstract(changed(make_state(1), **changes))

    with pytest.raises(ValueError, match=words):
        checkpoints.restore(wanted)


def test_a_part_that_was_not_saved_is_refused(checkpoints):
    save_steps(checkpoints, [1])

    with pytest.raises(ValueError, match="first at judge/w: .*has nothing"):
        checkpoints.restore_part("judge", abstract({"w": jnp.ones(2)}))


def test_a_leaf_that_is_no_array_is_refused_by_its_path(checkpoints):
    with pytest.raises(ValueError, match="jax.Array .*at optimizer/count, got 3"):
        checkpoints.save(1, {"optimizer": {"count": 3}}, {})


@pytest.mark.parametrize("extra", [{1: 2}, {"a": (1, 2)}, {"a": float("nan")}])
def test_an_extra_that_json_would_change_is_refused(checkpoints, extra):
    with pytest.raises(ValueError, match="must be plain JSON"):
        checkpoints.save(1, {"a": jnp.ones(2)}, extra)


def test_a_score_that_is_no_number_is_refused(checkpoints):
    with pytest.raises(ValueError, match="score of step 1 must be finite, got nan"):
        checkpoints.save(1, {"a": jnp.ones(2)}, {}, score=float("nan"))


def test_a_bucket_address_and_a_single_kept_step_are_refused(tmp_path):
    with pytest.raises(ValueError, match="mount the bucket"):
        checkpoint.Checkpoints("gs://bucket/run")
    with pytest.raises(ValueError, match="keep_last must be at least 2, got 1"):
        checkpoint.Checkpoints(tmp_path, keep_last=1)


def test_the_last_two_and_the_best_are_kept(checkpoints):
    scores = {1: 0.1, 2: 0.8, 3: 0.5, 4: 0.8, 6: 0.3}

    save_steps(checkpoints, range(1, 8), scores)

    # Steps 2 and 4 tie, the earlier wins; 5 and 7 have no score.
    assert checkpoints.steps() == [2, 6, 7]
    assert (checkpoints.best(), checkpoints.latest()) == (2, 7)


def test_a_score_may_come_after_the_save(checkpoints):
    before = {}
    for step, score in enumerate([0.1, 0.8, 0.5, 0.9], start=1):
        save_steps(checkpoints, [step])
        before[step] = checkpoints.steps()
        checkpoints.set_score(step, score)

    # What is best so far is kept until another one is better.
    assert before == {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4]}
    assert (checkpoints.steps(), checkpoints.best()) == ([3, 4], 4)
    restored, *_ = checkpoints.restore(abstract(make_state()), 4)
    assert_same_bits(restored, make_state(4))
    with pytest.raises(ValueError, match="score of step 4 must be finite, got nan"):
        checkpoints.set_score(4, float("nan"))


def test_without_scores_there_is_no_best_and_two_are_kept(checkpoints):
    save_steps(checkpoints, range(4))

    assert checkpoints.steps() == [2, 3]
    assert checkpoints.best() is None


def test_a_worse_new_step_is_kept_as_the_latest(checkpoints):
    save_steps(checkpoints, [1, 2, 3, 4], {1: 0.4, 2: 0.3, 3: 0.2, 4: 0.1})

    assert checkpoints.steps() == [1, 3, 4]


def test_what_is_kept_survives_reopening(checkpoints, tmp_path):
    save_steps(checkpoints, [1, 2, 3], {1: 0.5})
    again = checkpoint.Checkpoints(tmp_path / "checkpoints")

    save_steps(again, [4], {4: 0.4})
    again.close()

    assert (again.steps(), again.best()) == ([1, 3, 4], 1)


def test_saving_an_earlier_step_abandons_the_later_ones(checkpoints):
    save_steps(checkpoints, [10, 20, 30], {20: 0.9})

    save_steps(checkpoints, [15])

    # Step 10 went when 30 was saved.
    assert (checkpoints.steps(), checkpoints.latest()) == ([15], 15)
    assert checkpoints.best() is None


def test_a_step_can_be_saved_again(checkpoints):
    save_steps(checkpoints, [1, 2])

    checkpoints.save(2, make_state(99), {"again": True}, score=0.5)
    restored, extra, step = checkpoints.restore(abstract(make_state()))

    assert_same_bits(restored, make_state(99))
    assert (extra, step, checkpoints.steps()) == ({"again": True}, 2, [1, 2])


def flip_a_bit(folder):
    file = biggest_file(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


def truncate_a_file(folder):
    file = biggest_file(folder)
    os.truncate(file, file.stat().st_size - 1)
    return file


def empty_a_file(folder):
    file = biggest_file(folder)
    file.write_bytes(b"")
    return file


def delete_a_file(folder):
    file = biggest_file(folder)
    file.unlink()
    return file


def delete_the_metadata(folder):
    (folder / "_METADATA").unlink()
    return folder / "_METADATA"


def empty_the_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    return folder / "manifest.txt"


def delete_the_manifest(folder):
    (folder / "manifest.txt").unlink()
    return folder / "manifest.txt"


def flip_a_bit_of_the_manifest(folder):
    file = folder / "manifest.txt"
    text = file.read_text()
    file.write_text(text.replace('"position": 3', '"position": 2'))
    return file


DAMAGES = [
    flip_a_bit,
    truncate_a_file,
    empty_a_file,
    delete_a_file,
    delete_the_metadata,
    empty_the_folder,
    delete_the_manifest,
    flip_a_bit_of_the_manifest,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_step_falls_back_with_one_line(checkpoints, caplog, damage):
    save_steps(checkpoints, [1, 2, 3])

    culprit = damage(folder_of(checkpoints, 3))
    with caplog.at_level(logging.WARNING):
        restored, extra, step = checkpoints.restore(abstract(make_state()))

    assert_same_bits(restored, make_state(2))
    assert (step, extra["position"]) == (2, 2)
    (line,) = [r for r in caplog.records if r.name == checkpoint.__name__]
    assert "step 3" in line.getMessage() and str(culprit) in line.getMessage()


def test_a_sound_last_step_is_restored_without_a_line(checkpoints, caplog):
    save_steps(checkpoints, [1, 2])

    with caplog.at_level(logging.WARNING):
        _, _, step = checkpoints.restore(abstract(make_state()))

    assert (step, caplog.records) == (2, [])


def test_every_single_file_is_guarded(checkpoints):
    save_steps(checkpoints, [1])
    folder = folder_of(checkpoints, 1)
    files = [p for p in folder.rglob("*") if p.is_file()]

    for file in files:
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(manifest.DamagedError, match=file.name):
            checkpoints.restore(abstract(make_state()), 1)
        file.write_bytes(content)

    assert len(files) > 5
    checkpoints.restore(abstract(make_state()), 1)


def test_a_damaged_step_asked_for_by_number_is_refused(checkpoints):
    save_steps(checkpoints, [1, 2])
    culprit = flip_a_bit(folder_of(checkpoints, 2))

    with pytest.raises(manifest.DamagedError, match=f"step 2: {culprit} changed"):
        checkpoints.restore(abstract(make_state()), 2)


def test_when_nothing_is_sound_every_fault_is_named(checkpoints, tmp_path):
    save_steps(checkpoints, [1, 2])
    flip_a_bit(folder_of(checkpoints, 1))
    delete_the_manifest(folder_of(checkpoints, 2))

    with pytest.raises(manifest.DamagedError) as caught:
        checkpoints.restore(abstract(make_state()))

    message = str(caught.value)
    assert str(tmp_path / "checkpoints") in message
    assert "step 2: " in message and "manifest.txt: No such file" in message
    assert "step 1: " in message and "changed since it was saved" in message


def test_restoring_from_nothing_names_the_folder(checkpoints, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "checkpoints")):
        checkpoints.restore(abstract(make_state()))

    save_steps(checkpoints, [1])
    with pytest.raises(FileNotFoundError, match=r"step 4 in .*holds steps \[1\]"):
        checkpoints.restore(abstract(make_state()), 4)


def test_damage_does_not_count_towards_what_is_kept(checkpoints):
    save_steps(checkpoints, [1, 2, 3])
    delete_the_manifest(folder_of(checkpoints, 3))

    save_steps(checkpoints, [4])

    assert checkpoints.steps() == [2, 4]


def test_a_damaged_step_is_replaced_when_training_reaches_it_again(checkpoints):
    save_steps(checkpoints, [1, 2, 3])
    flip_a_bit(folder_of(checkpoints, 3))

    save_steps(checkpoints, [3])
    restored, _, step = checkpoints.restore(abstract(make_state()))

    assert step == 3
    assert_same_bits(restored, make_state(3))


def fail(*args):
    raise OSError(28, "No space left on device")


def test_a_save_that_fails_is_reported_and_costs_no_older_step(
    checkpoints, monkeypatch
):
    save_steps(checkpoints, [1, 2])

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_manifest", fail)
        checkpoints.save(3, make_state(3), {})
        with pytest.raises(OSError, match="saving step 3 .*No space left"):
            checkpoints.wait()

    assert checkpoints.steps() == [1, 2]
    save_steps(checkpoints, [3])
    assert checkpoints.steps() == [2, 3]
    assert {p.name for p in folder_of(checkpoints, 3).parent.iterdir()} == {
        "00000002",
        "00000003",
    }


@pytest.mark.parametrize(
    "moment, left", [("_digests", 2), ("_install", 3), ("_retire", 3)]
)
def test_a_save_cut_off_at_any_moment_leaves_a_sound_step(
    checkpoints, monkeypatch, moment, left
):
    save_steps(checkpoints, [1, 2])
    owner = manifest if moment == "_digests" else checkpoint.Checkpoints

    with monkeypatch.context() as patched:
        patched.setattr(owner, moment, fail)
        checkpoints.save(3, make_state(3), {})
        with pytest.raises(OSError):
            checkpoints.wait()
    restored, _, step = checkpoints.restore(abstract(make_state()))
    save_steps(checkpoints, [4])

    # The manifest makes a step: with it, even the final rename may be missing.
    assert step == left
    assert_same_bits(restored, make_state(left))
    assert checkpoints.steps() == [left, 4]


SAVER = """
import sys
import jax, jax.numpy as jnp
from sdpo_jax import checkpoint
from tests import compiling
checkpoints = checkpoint.Checkpoints(sys.argv[1])
step = checkpoints.latest()
step = 0 if step is None else step
while True:
    step += 1
    state = {"a": jnp.full((256, 1024), step), "b": jnp.full(3, step, jnp.bfloat16)}
    checkpoints.save(step, state, {"step": step}, score=-abs(step - 9.0))
    print(step, flush=True)
"""


def test_a_saver_killed_at_any_moment_leaves_a_state_to_restore(checkpoints, tmp_path):
    folder, root = tmp_path / "checkpoints", pathlib.Path(__file__).parents[1]
    wanted = abstract(
        {"a": jnp.zeros((256, 1024), jnp.int32), "b": jnp.zeros(3, jnp.bfloat16)}
    )
    reached = 0

    for delay_s in np.linspace(0.0, 0.08, 4):
        saver = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(folder)],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        # The third line means that one more save is complete.
        lines = [saver.stdout.readline() for _ in range(3)]
        time.sleep(delay_s)
        saver.send_signal(signal.SIGKILL)
        lines += saver.communicate()[0].splitlines()
        restored, extra, step = checkpoints.restore(wanted)
        started = int(lines[-1])
        # One save may be under way; the one before it must be there.
        assert step >= started - 1
        assert step > reached and extra == {"step": step}
        assert (np.asarray(restored["a"]) == step).all()
        assert (np.asarray(restored["b"]) == step).all()
        reached = step
    assert checkpoints.best() == min(9, reached)


PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from sdpo_jax import checkpoint
from tests import compiling

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
places = [NamedSharding(mesh, P("data")), NamedSharding(mesh, P())]
make = lambda step: [jnp.arange(64.0) + step, jax.random.key(step)]
make = jax.jit(make, static_argnums=0, out_shardings=places)
checkpoints = checkpoint.Checkpoints(sys.argv[3])
for step in range(1, 5):
    checkpoints.save(step, make(step), {"step": step}, score=-step)
checkpoints.wait()
assert checkpoints.steps() == [1, 3, 4] and checkpoints.best() == 1
if sys.argv[2] == "0":
    (checkpoints._paths()[4] / "manifest.txt").write_text("damage")
multihost_utils.sync_global_devices("damaged")
abstract = make(0)
(numbers, key), extra, step = checkpoints.restore(abstract)
assert (extra, step) == ({"step": 3}, 3) and key.sharding == places[1]
for mine, saved in zip(numbers.addressable_shards, make(3)[0].addressable_shards):
    assert (np.asarray(mine.data) == np.asarray(saved.data)).all()
best = checkpoints.restore_part("0", abstract[0], checkpoints.best())
assert float(best.addressable_shards[0].data[0]) == 1 + 32 * int(sys.argv[2])
if sys.argv[2] == "0":
    checkpoint.write_manifest = None
try:
    checkpoints.save(5, make(5), {})
    checkpoints.wait()
except OSError as error:
    print(error)
checkpoints.close()
"""


@pytest.mark.slow
def test_two_processes_save_restore_fall_back_and_fail_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(index), str(tmp_path)],
            cwd=pathlib.Path(__file__).parents[1],
            env=os.environ | {"XLA_FLAGS": compiling.flags(2)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]

    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "saving step 5" in outputs[0][0] and "not callable" in outputs[0][0]
    assert "failed: see the other processes" in outputs[1][0]
    assert "DAMAGED CHECKPOINT" in outputs[0][1]
    assert "DAMAGED CHECKPOINT" not in outputs[1][1]


def test_the_manifest_lists_every_leaf_and_file_in_plain_text(checkpoints):
    save_steps(checkpoints, [4], {4: 0.25})
    folder = folder_of(checkpoints, 4)

    content = json.loads((folder / "manifest.txt").read_text().partition("\n")[2])

    assert (content["step"], content["score"]) == (4, 0.25)
    assert content["leaves"]["student/layers/0/kernel"] == ["float32", [8, 4]]
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert content["files"].keys() == files - {"manifest.txt"}
