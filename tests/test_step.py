import contextlib
import dataclasses
import functools
import math
import os
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdpo_jax import config, distributed, methods, step, train_state
from sdpo_jax.batch import Attempts, Batch
from sdpo_jax.model import decoder, families, lora
from tests import compiling

WIDTH, VOCAB = 32, 512
ARCH = families.Architecture(
    family="qwen3",
    vocab=VOCAB,
    width=WIDTH,
    mlp_width=64,
    layers=2,
    heads=8,
    kv_heads=8,
    head_width=8,
    norm_eps=1e-6,
    **families.SWITCHES["qwen3"],
    tied=False,
    max_positions=64,
    period=(families.LayerKind(1e4),),
)
ROWS, PROMPT, REPROMPT, RESPONSE = 16, 6, 9, 10
# All of this file computes in float64, so that only a mistake exceeds rounding: here of
# sums in another order, relative to the largest entry of each leaf.
CLOSE = 1e-11

ONE = (1, 1, 1)
# Mesh and micro-batch: 2 to 16 rows per device, in 1, 2 or 4 parts.
MESHES = [
    ((8, 1, 1), 1),
    ((1, 8, 1), 0),
    ((1, 1, 8), 4),
    ((2, 2, 2), 2),
    ((1, 4, 2), 2),
]
CUT = ((2, 2, 2), 2)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def settings(mesh=ONE, micro_batch=0, **fields):
    c = config.default()
    c.model.dtype = "float64"  # Refused by `config.validate`: it is for tests.
    c.rollout.questions = c.step.questions = c.rollout.attempts = 4
    c.sdpo.top_k = 8
    c.step.chunk = 4
    c.step.micro_batch = micro_batch
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = mesh
    # A step that is large, and not clipped: the first moment is then the gradient.
    c.optimizer.learning_rate, c.optimizer.warmup_updates = 0.01, 0
    c.optimizer.clip_norm = 1e9
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


@functools.cache
def parameters(tied, seed=0, vocab=VOCAB):
    """Weights large enough that student and teacher disagree."""
    arch = dataclasses.replace(ARCH, tied=tied, vocab=vocab)
    params = decoder.init(arch, jax.random.key(seed))
    return jax.tree.map(lambda x: 3 * x.astype(jnp.float64), params)


def host_batch(old_logp=None, wider=0):
    r = np.random.default_rng(0)
    # Four attempts at each question, neighbours, as `settings` says.
    prompt = np.repeat(r.integers(0, VOCAB, (ROWS // 4, PROMPT)), 4, axis=0)
    prompt[: ROWS // 2, :2] = -1
    reprompt = r.integers(0, VOCAB, (ROWS, REPROMPT))
    reprompt[: ROWS // 2, :3] = -1
    response = r.integers(0, VOCAB, (ROWS, RESPONSE))
    mask = np.arange(RESPONSE) < r.integers(1, RESPONSE + 1, (ROWS, 1))
    response[~mask] = -1
    logp = np.where(mask, -math.log(VOCAB) + r.normal(size=mask.shape) / 4, np.nan)
    left = lambda x: np.pad(x, [(0, 0), (wider, 0)], constant_values=-1)
    right = lambda x, fill: np.pad(x, [(0, 0), (0, wider)], constant_values=fill)
    attempts = Attempts(
        prompt_BP=left(prompt).astype(np.int32),
        response_BR=right(response, -1).astype(np.int32),
        response_mask_BR=right(mask, False),
        sampler_logp_BR=right(logp, np.nan),
        rows_per_prompt=4,
    )
    return Batch(
        attempts=attempts,
        reprompt_BQ=left(reprompt).astype(np.int32),
        has_target_B=np.arange(ROWS) % 4 != 1,
        advantage_B=r.normal(size=ROWS),
        old_logp_BR=old_logp,
        loss_weight_B=np.linspace(0.5, 1.5, ROWS),
    )


class Update:
    """One compiled update, and what its compilation wrote to stderr."""

    def __init__(self, c, tied, batch, vocab=VOCAB):
        self.c, self.arch = c, dataclasses.replace(ARCH, tied=tied, vocab=vocab)
        sizes = (c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
        devices = jax.devices()[: math.prod(sizes)]
        self.mesh = distributed.make_mesh(c.mesh, devices)
        abstract = jax.eval_shape(lambda: batch)
        rows = distributed.sharding(self.mesh, "batch")
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
        # Parameters are float32 but in this file.
        is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
        wide = lambda x: x.update(dtype=jnp.float64) if is_float(x) else x
        self.lowered = step.make_train_step(c, self.arch, self.mesh).lower(
            jax.tree.map(wide, train_state.abstract_state(c, self.arch, self.mesh)),
            jax.tree.map(place, abstract),
            jax.ShapeDtypeStruct((), jnp.float32),
        )
        with captured_stderr() as log:
            self.compiled = self.lowered.compile()
        (self.log,) = log

    def state(self):
        """A student, and a teacher with other weights."""
        new = functools.partial(train_state.new_state, self.c, self.arch, self.mesh)
        weights = functools.partial(parameters, self.arch.tied, vocab=self.arch.vocab)
        state = new(jax.tree.map(jnp.copy, weights()))
        if state.teacher is None:
            return state
        return state.replace(teacher=new(weights(seed=1)).student)

    def __call__(self, state, batch, teacher_rate=0.0):
        rate = jax.device_put(np.float32(teacher_rate), distributed.sharding(self.mesh))
        return self.compiled(state, distributed.to_devices(batch, self.mesh), rate)

    def gradient(self, batch):
        state, metrics = self(self.state(), batch)
        assert metrics.finite
        # Adam's first moment after one step is (1 - b1) times the gradient.
        moment = optax.tree_utils.tree_get(state.opt_state, "mu")
        return jax.device_get(jax.tree.map(lambda m: m / (1 - 0.9), moment)), metrics


@contextlib.contextmanager
def captured_stderr():
    """What C++ and Python write to file descriptor 2, as a list of one text."""
    text = []
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield text
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        text.append(file.read().decode(errors="replace"))


@functools.cache
def update(mesh=ONE, micro_batch=0, tied=False, wider=0, old_logp=False, **fields):
    c = settings(mesh, micro_batch, **fields)
    old = np.zeros((ROWS, RESPONSE)) if old_logp else None
    # What comes from the cache has no log, and that of these is read.
    logged = mesh != ONE and not fields
    with compiling.anew() if logged else contextlib.nullcontext():
        return Update(c, tied, host_batch(old, wider))


def assert_close(found, expected, rtol=CLOSE):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_same_gradient_and_metrics(found, expected):
    (gradient, metrics), (expected_gradient, expected_metrics) = found, expected
    assert_close(gradient, expected_gradient)
    found_leaves = jax.tree.leaves_with_path(metrics)
    expected_leaves = jax.tree.leaves_with_path(expected_metrics)
    for (path, leaf), (_, other) in zip(found_leaves, expected_leaves, strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(leaf, other, rtol=CLOSE, err_msg=name)


METHODS = {
    "top_k": {},
    "full": {"sdpo__support": "full", "sdpo__divergence": "reverse_kl"},
    "grpo": {"method": "grpo"},
}
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
CASES = [
    *(slow("top_k", False, *mesh) for mesh in MESHES[:3]),
    ("top_k", False, *CUT),
    slow("top_k", True, *MESHES[4]),
    slow("grpo", False, *CUT),
    slow("top_k", False, *MESHES[4]),
    slow("top_k", True, *CUT),
    slow("top_k", True, (1, 1, 8), 0),
    slow("grpo", True, (1, 8, 1), 1),
    slow("full", False, *CUT),
    slow("full", True, (1, 4, 2), 1),
]
# Mesh, micro-batch and tied: what is compiled in many pieces.
PARTITIONED = [
    (*CUT, False),
    (*MESHES[4], True),
    slow(*CUT, True),
    slow(*MESHES[4], False),
]


@pytest.mark.parametrize("method, tied, mesh, micro_batch", CASES)
def test_gradient_does_not_depend_on_mesh_and_micro_batches(
    method, tied, mesh, micro_batch
):
    fields = METHODS[method]

    found = update(mesh, micro_batch, tied, **fields).gradient(host_batch())

    whole_on_one_device = update(tied=tied, **fields).gradient(host_batch())
    assert_same_gradient_and_metrics(found, whole_on_one_device)


@pytest.mark.slow
def test_order_of_rows_does_not_matter():
    batch = host_batch()
    other_order = jax.tree.map(lambda x: x[::-1].copy(), batch)

    # Other rows meet in a micro-batch, and micro-batches come in another order.
    found = update(*CUT).gradient(other_order)

    assert_same_gradient_and_metrics(found, update(*CUT).gradient(batch))


@pytest.mark.slow
def test_amount_of_padding_changes_nothing():
    found = update(wider=3).gradient(host_batch(wider=3))

    assert_same_gradient_and_metrics(found, update().gradient(host_batch()))


def test_rows_without_a_target_change_nothing():
    batch = host_batch()
    out = ~batch.has_target_B
    attempts = batch.attempts
    spoiled_attempts = attempts.replace(
        response_BR=np.where(out[:, None], 7, attempts.response_BR),
        sampler_logp_BR=np.where(out[:, None], np.nan, attempts.sampler_logp_BR),
    )
    spoiled = batch.replace(
        attempts=spoiled_attempts,
        advantage_B=np.where(out, np.nan, batch.advantage_B),
        reprompt_BQ=np.where(out[:, None], 3, batch.reprompt_BQ),
    )

    for method in ("top_k", "grpo"):
        clean = update(*CUT, **METHODS[method])
        gradient, metrics = clean.gradient(spoiled)
        expected, expected_metrics = clean.gradient(batch)

        assert_equal(gradient, expected)
        assert metrics.per_step["loss"] == expected_metrics.per_step["loss"]


def test_rows_without_a_target_are_not_in_the_denominator():
    batch, half = host_batch(), ROWS // 2
    first_half = batch.replace(has_target_B=np.arange(ROWS) < half)
    twice = jax.tree.map(lambda x: np.concatenate([x[:half]] * 2), first_half)

    for method in ("top_k", "grpo"):
        run = update(*CUT, **METHODS[method])
        found = run.gradient(first_half)
        expected = run.gradient(twice)

        assert_same_gradient_and_metrics(found, expected)


def test_a_non_finite_loss_leaves_the_state_untouched_and_is_told():
    run = update(*CUT)
    state = run.state()
    before = jax.device_get(state)
    batch = host_batch()
    weight = batch.loss_weight_B.copy()
    weight[0] = np.nan

    after, metrics = run(state, batch.replace(loss_weight_B=weight), teacher_rate=0.5)

    assert_equal(jax.device_get(after), before)
    assert not metrics.finite
    assert not metrics.gradient_finite.all()


def test_the_state_moves_and_is_donated():
    run = update(*CUT)
    state = run.state()
    # Not of the state itself: a host's view of a buffer keeps it from being donated.
    before = jax.device_get(parameters(tied=False))

    after, metrics = run(state, host_batch())

    leaves = jax.tree.leaves_with_path(state)
    assert [path for path, leaf in leaves if not leaf.is_deleted()] == []
    assert after.step == 1 and metrics.finite
    assert metrics.gradient_finite.shape == (len(jax.tree.leaves(before)),)
    for new, old in zip(
        jax.tree.leaves(after.student), jax.tree.leaves(before), strict=True
    ):
        assert np.abs(new - old).max() > 1e-3


def test_two_calls_compile_once_and_a_frozen_teacher_never_moves():
    c = settings(teacher__mode="frozen", sdpo__support="full")
    mesh = distributed.make_mesh(c.mesh, jax.devices()[:1])
    run = step.make_train_step(c, ARCH, mesh)
    state = train_state.new_state(c, ARCH, mesh, parameters(tied=False))
    before = jax.device_get(state.teacher)

    for _ in range(2):
        batch = distributed.to_devices(host_batch(), mesh)
        state, _ = run(state, batch, jnp.float32(0.5))

    assert run.cache_size() == 1
    assert_equal(jax.device_get(state.teacher), before)


def test_ema_teacher_moves_only_when_asked():
    run = update(*CUT)
    state = run.state()
    before = jax.device_get(state.teacher)

    state, _ = run(state, host_batch(), teacher_rate=0.0)
    stayed = jax.device_get(state.teacher)
    state, _ = run(state, host_batch(), teacher_rate=0.25)

    assert_equal(stayed, before)
    student = jax.device_get(state.student)
    expected = jax.tree.map(lambda t, s: t + 0.25 * (s - t), before, student)
    assert_close(jax.device_get(state.teacher), expected)


def test_live_teacher_holds_no_copy_and_is_read():
    run = update(teacher__mode="live")
    state = run.state()
    assert state.teacher is None

    state, metrics = run(state, host_batch(), teacher_rate=0.5)

    assert state.teacher is None
    assert metrics.finite and metrics.per_token["divergence"] > 0


def test_teacher_without_reprompts_reads_the_prompt(monkeypatch):
    without = dataclasses.replace(
        methods.METHODS["sdpo"], rows=frozenset({"sampler_logp"})
    )
    monkeypatch.setitem(methods.METHODS, "sdpo", without)
    batch = host_batch().replace(reprompt_BQ=None)

    _, metrics = Update(settings(teacher__mode="live"), False, batch).gradient(batch)

    # The student itself, after the same prompt: there is nothing to learn.
    assert abs(metrics.per_token["divergence"]) < 1e-12
    _, after_reprompts = update(teacher__mode="live").gradient(host_batch())
    assert after_reprompts.per_token["divergence"] > 1e-3


def test_trust_region_lies_between_its_anchor_and_the_live_student():
    # With a share of 0 or 1 one teacher alone is read; both are checked at once by the
    # linearity of log q in the share, up to its normaliser.
    run = update(teacher__mode="trust_region", teacher__mixture=0.5)
    state = run.state()
    anchor = jax.device_get(state.teacher)

    state, mixed = run(state, host_batch(), teacher_rate=0.5)

    _, by_anchor = update().gradient(host_batch())
    _, by_live = update(teacher__mode="live").gradient(host_batch())
    # log q = (log anchor + log live) / 2 - log Z with Z <= 1 (Hoelder).
    advantage = lambda metrics: metrics.per_token["teacher_advantage"]
    assert advantage(mixed) > (advantage(by_anchor) + advantage(by_live)) / 2
    assert_equal(jax.device_get(state.teacher), anchor)


LORA = dict(lora__rank=2, lora__alpha=8.0, teacher__mode="live")


def test_gradient_of_adapters_follows_from_that_of_the_weights():
    found, _ = update(**LORA).gradient(host_batch())
    of_weights, _ = update(teacher__mode="live").gradient(host_batch())

    run = update(**LORA)
    (layer,), (gradient,) = run.state().student, found
    for module, name, inputs in lora.TARGETS.values():
        adapter = layer[module][name]
        weight_PIO = of_weights["layers"][0][module][name]
        periods, rank = adapter.b.shape[:2]
        a_PIR = np.asarray(adapter.a).reshape(periods, -1, rank)
        weight_PIO = weight_PIO.reshape(periods, a_PIR.shape[1], -1)
        expected = 8.0 / 2 * np.einsum("pir,pio->pro", a_PIR, weight_PIO)
        expected = expected.reshape(adapter.b.shape)
        assert_close(gradient[module][name].b, expected)
        # The second factor is zero, so the first one has no gradient yet.
        assert not np.any(gradient[module][name].a), inputs


@pytest.mark.slow
@pytest.mark.parametrize("mesh, micro_batch", [CUT])
def test_adapters_on_a_mesh_move_as_on_one_device(mesh, micro_batch):
    alone = update(**LORA)
    cut = update(mesh, micro_batch, **LORA)
    states = []
    for run in (alone, cut):
        state = run.state()
        for _ in range(2):
            state, _ = run(state, host_batch())
        states.append(jax.device_get((state.student, state.base)))

    (student, base), (other, other_base) = states
    assert_close(other, student)
    before = jax.device_get(parameters(tied=False))
    assert_equal(base, before)
    assert_equal(other_base, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tied, fields",
    [
        (False, METHODS["full"]),
        (False, METHODS["grpo"]),
        (True, METHODS["top_k"] | {"teacher__mode": "trust_region"}),
    ],
)
def test_vocabulary_that_the_mesh_does_not_divide_changes_nothing(tied, fields):
    batch, vocab = host_batch(), VOCAB + 1

    padded = Update(settings(*CUT, **fields), tied, batch, vocab)
    found = padded.gradient(batch)

    whole = Update(settings(**fields), tied, batch, vocab).gradient(batch)
    assert_same_gradient_and_metrics(found, whole)
    assert "rematerialization" not in padded.log, padded.log


def test_stored_state_does_not_depend_on_how_the_vocabulary_is_sharded():
    arch = dataclasses.replace(ARCH, vocab=VOCAB + 1)
    c = settings()

    def state(*sizes):
        shape = dict(zip(distributed.MESH_AXES, sizes, strict=True))
        return train_state.abstract_state(c, arch, distributed.make_mesh(shape))

    one, other = state(8, 1, 1), state(1, 2, 4)

    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(one) == shapes(other)
    head = other.student["head"]["kernel_DV"]
    # Along its width then, of which no device holds more than its part.
    assert head.sharding.shard_shape(head.shape) == (WIDTH // 8, VOCAB + 1)


def test_grpo_holds_no_teacher():
    assert update(method="grpo").state().teacher is None


def scores(mesh=ONE, micro_batch=0, tied=False):
    c = settings(mesh, micro_batch)
    devices = jax.devices()[: math.prod(mesh)]
    the_mesh = distributed.make_mesh(c.mesh, devices)
    arch = dataclasses.replace(ARCH, tied=tied)
    scorer = step.make_scorer(c, arch, the_mesh)
    params = train_state.new_state(c, arch, the_mesh, parameters(tied)).student
    attempts = distributed.to_devices(host_batch().attempts, the_mesh)
    return np.asarray(scorer(params, attempts))


@pytest.mark.parametrize("mesh, micro_batch", [(ONE, 2), CUT])
def test_scorer_gives_log_softmax_of_the_response(mesh, micro_batch):
    attempts = host_batch().attempts
    params = parameters(tied=False)

    found = scores(mesh, micro_batch)

    ids = jnp.concatenate([attempts.prompt_BP, attempts.response_BR], axis=1)
    hidden = jax.jit(
        lambda p: decoder.hidden(ARCH, p, ids, dtype=jnp.dtype(jnp.float64))
    )(params)[:, PROMPT - 1 : -1]
    logp = np.asarray(jax.nn.log_softmax(hidden @ params["head"]["kernel_DV"]))
    chosen = np.maximum(attempts.response_BR, 0)[..., None]
    expected = np.take_along_axis(logp, chosen, -1)[..., 0]
    counted = attempts.response_mask_BR
    np.testing.assert_allclose(found[counted], expected[counted], rtol=1e-12)


def test_first_of_several_steps_has_ratio_one():
    old = scores()
    batch = host_batch(old_logp=old)

    run = update(old_logp=True, method="grpo")
    found = run.gradient(batch)

    alone = update(method="grpo").gradient(host_batch())
    assert found[1].per_token["clipped"] == alone[1].per_token["clipped"] == 0
    assert_close(found[0], alone[0])

    # A second step on the same attempts is off-policy by then.
    state, _ = run(run.state(), batch)
    _, second = run(state, batch)
    assert second.per_token["clipped"] > 0


@pytest.mark.parametrize("micro_batch, unit", [(0, 4), (3, 12)])
def test_rows_that_do_not_divide_are_refused_before_compiling(micro_batch, unit):
    c = settings((2, 2, 2), micro_batch)
    if not micro_batch:
        c.rollout.attempts = 3
        c.step.questions = c.rollout.questions = 3
    rows = c.step.questions * c.rollout.attempts
    mesh = distributed.make_mesh(c.mesh)

    told = (
        rf"step.questions={c.step.questions} x rollout.attempts={c.rollout.attempts} "
        rf"= {rows} rows do not divide by mesh.data x mesh.fsdp = 4 times "
        rf"step.micro_batch={unit // 4}"
    )
    with pytest.raises(ValueError, match=told):
        step.make_train_step(c, ARCH, mesh)


def test_sharding_constraints_are_in_the_traced_update():
    text = update(*CUT).lowered.as_text()

    # Activations by rows, heads and MLP by `tensor`, one unembedding per batch shard.
    rows = r"\{\"data\", \"fsdp\"\}"
    for where in [
        rf"\[{rows}, \{{\}}, \{{\}}\]",
        rf"\[{rows}, \{{\}}, \{{\"tensor\"\}}, \{{\}}\]",
        rf"\[{rows}, \{{\}}, \{{\"tensor\"\}}\]",
    ]:
        assert re.search(rf"sharding_constraint [^\n]*{where}", text), where


@pytest.mark.parametrize("mesh, micro_batch, tied", PARTITIONED)
def test_nothing_is_rematerialised_on_every_device(mesh, micro_batch, tied):
    log = update(mesh, micro_batch, tied).log

    assert "rematerialization" not in log, log


COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?:all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute|collective-broadcast)(?:-start)?\("
)


def computations(hlo):
    """Name of each computation of an HLO module -> its lines."""
    found, name = {}, None
    for line in hlo.splitlines():
        start = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if start:
            name = start[1]
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def inside_loops(hlo):
    """Every line that runs within a while loop, whatever it is called through."""
    lines = computations(hlo)
    called = re.compile(
        r"(?:calls|body|condition|to_apply|\w+_computations?)="
        r"(?:\{(?P<several>[^}]*)\}|(?P<one>%?[\w.\-]+))"
    )
    waiting = re.findall(r"body=%?([\w.\-]+)", hlo)
    assert waiting, "no loop: the update was not cut into chunks"
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in lines[name]:
            yield line
            for found in called.finditer(line):
                names = (found["several"] or found["one"]).split(",")
                waiting += [name.strip(" %") for name in names]


def elements(hlo_type):
    """The largest array of an HLO type, perhaps a tuple."""
    shapes = re.findall(r"\w+\[([\d,]*)\]", hlo_type)
    return max(math.prod(int(n) for n in s.split(",") if n) for s in shapes)


def collectives(lines):
    return [
        (elements(found["type"]), line.strip()[:200])
        for line in lines
        if (found := COLLECTIVE.search(line))
    ]


@pytest.mark.parametrize("mesh, micro_batch, tied", PARTITIONED)
def test_no_loop_moves_as_much_as_the_unembedding(mesh, micro_batch, tied):
    hlo = update(mesh, micro_batch, tied).compiled.as_text()
    unembedding = WIDTH * VOCAB // mesh[2]

    within = collectives(inside_loops(hlo))
    anywhere = collectives(hlo.splitlines())

    # Weights of one layer, gathered over `fsdp` where they are used, are expected, and
    # smaller: here only the unembedding is as large as that.
    assert within, "no collective in any loop: the parser is out of date"
    too_large = [line for size, line in within if size >= unembedding]
    assert not too_large, "\n".join(too_large)
    # Its gradient is reduced, once, outside.
    assert [line for size, line in anywhere if size >= unembedding]
