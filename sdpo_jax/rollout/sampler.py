"""The embedded engine: a jitted sampler on the trainer's own devices.

A prompt is read once and shared by its attempts. Decoding is a `while_loop` that ends
when every row has stopped or the cache is full; the cache then doubles, so short
responses never pay for the longest allowed. Every row draws from its own key.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sdpo_jax import distributed
from sdpo_jax.batch import PAD, Attempts
from sdpo_jax.data import padding
from sdpo_jax.distributed import constrain
from sdpo_jax.model import cache as kv_cache
from sdpo_jax.model import decoder
from sdpo_jax.model.families import Architecture
from sdpo_jax.rollout import Sampling, drawing

Params = Any
# Response tokens that the cache has room for at first.
_FIRST_SLOTS = 64
# Tokens between two looks at the signals: seconds, where a long response takes minutes.
_LOOK = 256


@flax.struct.dataclass
class _State:
    """A batch in the middle of decoding; `length` tokens are drawn in every row."""

    length: jax.Array
    done_B: jax.Array
    token_BR: jax.Array
    logp_BR: jax.Array
    policy_logp_BR: jax.Array | None
    uniform_BR: jax.Array
    cache: kv_cache.Cache


class Sampler:
    """Samples from a decoder on a mesh.

    Args:
      arch: the model.
      mesh: devices.
      dtype: of weights and activations while sampling.
      stop_ids: tokens that end a response; they are kept in it.
      max_prompt: tokens; longer prompts are refused.
      rows_at_once: attempts decoded together, at least one on every batch shard.
      attention: how prompts are read, see `causal_attention`.
      check_stop: called every `_LOOK` tokens; what it raises ends the sampling.
    """

    def __init__(
        self,
        arch: Architecture,
        mesh: Mesh,
        *,
        dtype: jnp.dtype,
        stop_ids: Sequence[int],
        max_prompt: int,
        rows_at_once: int,
        attention: str = "xla",
        check_stop: Callable[[], None] = lambda: None,
    ):
        self._mesh = mesh
        self._check_stop = check_stop
        self._max_prompt = max_prompt
        self._rows_at_once = rows_at_once
        self._unstack = functools.partial(decoder.unstack, arch, dtype=dtype)
        self._place = jax.jit(functools.partial(_place, arch))
        start = functools.partial(_start, arch, tuple(stop_ids), attention)
        self._start = jax.jit(start, static_argnames=("sampling", "slots"))
        self._pad = jax.jit(kv_cache.pad, static_argnames="more")
        extend = functools.partial(_extend, arch, tuple(stop_ids))
        # Donated, the cache is updated in place instead of being copied.
        self._extend = jax.jit(
            extend, static_argnames="sampling", donate_argnames="state"
        )

    def sample(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        ids: Sequence[int],
        sampling: Sampling,
        key: jax.Array,
        each: Callable[[slice, Attempts], None] = lambda rows, attempts: None,
    ) -> Attempts:
        """See `rollout.Engine.sample`.

        Raises:
          ValueError: if a prompt is empty or longer than `max_prompt`.
        """
        longest = max(map(len, prompts), default=0)
        if longest > self._max_prompt or min(map(len, prompts), default=0) == 0:
            raise ValueError(
                f"prompts must hold 1 to {self._max_prompt} tokens, the longest here "
                f"has {longest}; raise rollout.max_prompt or shorten the question"
            )
        # Few widths and one size of group, so that few shapes are ever compiled.
        width = padding.bucket(longest, self._max_prompt)
        prompt_UP = padding.pad_left(prompts, width)
        ids_U = np.asarray(ids, np.uint32)
        size, part = self._group_size(len(prompts), sampling.attempts)
        groups = []
        with jax.set_mesh(self._mesh):
            # In parts, so that no second copy of all weights is ever held.
            weights = self._unstack(params, place=self._place)
            for first in range(0, len(prompts), size):
                group = self._on_devices(prompt_UP, ids_U, first, size)
                drawn = self._sample_group(weights, group, part, sampling, key)
                group_UP = prompt_UP[first : first + size]
                groups.append(_attempts(group_UP, *drawn, sampling.attempts))
                start = first * sampling.attempts
                each(slice(start, start + len(groups[-1].prompt_BP)), groups[-1])
        return jax.tree.map(lambda *x: np.concatenate(x), *groups)

    def _group_size(self, prompts: int, attempts: int) -> tuple[int, int]:
        """Prompts per group, and how many attempts at each are decoded together.

        The prompts are a multiple of the batch shards, and equal for all groups.
        """
        shards = distributed.batch_shards(self._mesh)
        rows = max(self._rows_at_once // shards, 1)
        most = max(rows // attempts, 1)
        # Fewer than all attempts are decoded in as many parts as they need.
        parts = -(-attempts // rows)
        return shards * min(most, -(-prompts // shards)), -(-attempts // parts)

    def _on_devices(self, prompt_UP, ids_U, first, size):
        """The group of prompts and ids from `first` on."""
        # The last group is padded with copies of its first prompt, so that all groups
        # have the same shapes; `_attempts` drops their rows.
        index = np.arange(first, first + size)
        index = np.where(index < len(ids_U), index, first)
        return distributed.to_devices((prompt_UP[index], ids_U[index]), self._mesh)

    def _sample_group(self, weights, group, part, sampling, key):
        of_part = dataclasses.replace(sampling, attempts=part)
        drawn = [
            self._decode(weights, group, key, attempt, of_part)
            for attempt in range(0, sampling.attempts, part)
        ]
        # Parts are equal too, so the last may hold attempts that nobody asked for.
        by_prompt = lambda x_BR: x_BR.reshape(-1, part, x_BR.shape[-1])
        join = lambda *parts: np.concatenate(list(map(by_prompt, parts)), axis=1)
        keep = lambda x_UGR: x_UGR[:, : sampling.attempts].reshape(-1, x_UGR.shape[-1])
        return jax.tree.map(lambda *parts: keep(join(*parts)), *drawn)

    def _decode(self, weights, group, key, first_attempt, sampling):
        """Arrays of the group's attempts from `first_attempt` on, on the host."""
        slots = min(_FIRST_SLOTS, sampling.max_response)
        state = self._start(
            weights,
            *group,
            key,
            np.int32(first_attempt),
            sampling=sampling,
            slots=slots,
        )
        # Each size of the cache is a program of its own; in between the host waits for
        # `ended`.
        length = 0
        while True:
            length = min(length + _LOOK, slots)
            state, ended = self._extend(
                weights, state, np.int32(length), sampling=sampling
            )
            if length == sampling.max_response or bool(ended):
                drawn = (state.token_BR, state.logp_BR, state.policy_logp_BR)
                return distributed.to_host(drawn)
            self._check_stop()
            if length == slots:
                slots = min(2 * slots, sampling.max_response)
                state = state.replace(cache=self._grow(state.cache, slots=slots))

    def _grow(self, cache: kv_cache.Cache, slots: int) -> kv_cache.Cache:
        """The cache with more slots, whose own arrays are freed one by one.

        Donated, they could not become the longer ones; kept, they would be held
        together with all of those.
        """

        def pad(x: jax.Array, more: int) -> jax.Array:
            longer = self._pad(x, more=more)
            x.delete()
            return longer

        return kv_cache.grow(cache, slots, pad)


def _attempts(prompt_UP, token_BR, logp_BR, policy_logp_BR, group: int) -> Attempts:
    """The attempts of these prompts, without the rows that only pad their group."""
    prompt_BP = np.repeat(prompt_UP, group, axis=0)
    drawn = (token_BR, logp_BR, policy_logp_BR)
    token_BR, *logp = jax.tree.map(lambda x_BR: x_BR[: len(prompt_BP)], drawn)
    return Attempts(prompt_BP, token_BR, token_BR >= 0, *logp, rows_per_prompt=group)


def _place(arch: Architecture, weights: Params) -> Params:
    """Some weights for sampling, with the layers of one period: replicated over `fsdp`.

    Sharded over `fsdp` they would be gathered again for every token. Adapters are small
    and replicated on every device.
    """
    # The logical axes of weights that `fsdp` shards, and what is left of them.
    without_fsdp = {"embed": None, "table": "width_over_tensor"}
    place = lambda w, axes: constrain(w, *(without_fsdp.get(a, a) for a in axes))
    replicate = lambda w: constrain(w, *(None,) * w.ndim)
    axes = decoder.unstacked_axes(arch)
    return {
        name: jax.tree.map(replicate, tree)
        if name == "adapters"
        else jax.tree.map(place, tree, axes[name])
        for name, tree in weights.items()
    }


def _start(
    arch,
    stop_ids,
    attention,
    weights,
    prompt_UP,
    ids_U,
    key,
    first_attempt,
    *,
    sampling,
    slots,
):
    """Read the prompts and draw every row's first token."""
    hidden_UD, keys_values = decoder.prefill(arch, weights, prompt_UP, attention)
    group = sampling.attempts
    windows = [kind.window for kind in arch.kinds]
    cache = kv_cache.start(keys_values, windows, prompt_UP >= 0, group, slots)
    # Prompts and responses are sharded alike, by rows and heads. Without constraints
    # the empty slots, a constant, would be replicated on every device.
    place = lambda x: constrain(x, "batch", "heads", None, None)
    cache = cache.replace(layers=jax.tree.map(place, cache.layers))
    attempt_G = first_attempt + jnp.arange(group)
    uniform_BR = _uniforms(key, ids_U, attempt_G, sampling.max_response)
    # Rows of a prompt are neighbours, and all draw their first token from its state.
    hidden_BD = jnp.repeat(hidden_UD, group, axis=0)
    rows = constrain(jnp.zeros_like(uniform_BR), "batch", None)
    state = _State(
        length=jnp.int32(0),
        done_B=jnp.zeros(rows.shape[:1], bool),
        token_BR=jnp.full_like(rows, PAD, jnp.int32),
        logp_BR=rows,
        # Where the policy itself is sampled from, `logp_BR` holds the same numbers.
        policy_logp_BR=None if _is_plain(sampling) else rows,
        uniform_BR=uniform_BR,
        cache=cache,
    )
    return _draw_next(arch, stop_ids, weights, state, hidden_BD, sampling)


def _uniforms(
    key: jax.Array, ids_U: jax.Array, attempt_G: jax.Array, length: int
) -> jax.Array:
    """[B, R] numbers in [0, 1), each from its own (prompt, attempt, position).

    So draws depend neither on the batch and its mesh, nor on how many attempts are made
    or how long they may become.
    """
    fold = jax.random.fold_in

    def uniform_at(prompt_id, attempt, position):
        row_key = fold(fold(key, prompt_id), attempt)
        return jax.random.uniform(fold(row_key, position))

    over_positions = jax.vmap(uniform_at, (None, None, 0))
    over_attempts = jax.vmap(over_positions, (None, 0, None))
    over_prompts = jax.vmap(over_attempts, (0, None, None))
    uniform = over_prompts(ids_U, attempt_G, jnp.arange(length))
    return uniform.reshape(-1, length)


def _extend(arch, stop_ids, weights, state, length, *, sampling):
    """Draw tokens up to `length`, or until every row has stopped."""

    # A while_loop and not a scan, because it ends with the last row. It starts with one
    # token drawn: each turn reads the last token and draws the next one.
    def body(state: _State) -> _State:
        last = state.length - 1
        take = jax.lax.dynamic_index_in_dim
        token_B = take(state.token_BR, last, axis=1, keepdims=False)
        hidden, cache = decoder.decode(arch, weights, token_B, state.cache, last)
        state = state.replace(cache=cache)
        return _draw_next(arch, stop_ids, weights, state, hidden, sampling)

    going_on = lambda state: (state.length < length) & ~jnp.all(state.done_B)
    state = jax.lax.while_loop(going_on, body, state)
    return state, jnp.all(state.done_B)


def _draw_next(arch, stop_ids, weights, state, hidden_BD, sampling) -> _State:
    """Draw one token per row from the logits after `hidden_BD`."""
    unembed_DV = decoder.unembedding(arch, weights)
    # Logits accumulate in float32 and are never rounded to the dtype of weights: the
    # log-probabilities recorded here are compared with the trainer's.
    logits_BV = jnp.einsum(
        "bd,dv->bv", hidden_BD, unembed_DV, preferred_element_type=jnp.float32
    )
    take = jax.lax.dynamic_index_in_dim
    uniform_B = take(state.uniform_BR, state.length, axis=1, keepdims=False)
    # Gathered over `tensor`: the running sums of a draw go through a row's entire
    # vocabulary. Pinned before, or XLA would gather the unembedding at every token. Of
    # one that is sharded along its width, the logits are a sum over devices already.
    if decoder.shards_vocab(arch):
        logits_BV = constrain(logits_BV, "batch", "vocab")
    logits_BV = constrain(logits_BV, "batch", None)
    token_B, logp_B = drawing.draw(logits_BV, uniform_B, sampling)
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=state.length)
    # Rows that have stopped are computed along with the others, and record padding.
    if_going = lambda x_B: jnp.where(state.done_B, 0.0, x_B)
    policy_logp_BR = state.policy_logp_BR
    if policy_logp_BR is not None:
        full_logp_BV = jax.nn.log_softmax(logits_BV, axis=-1)
        policy_logp_B = drawing.log_prob(full_logp_BV, token_B)
        policy_logp_BR = put(policy_logp_BR, if_going(policy_logp_B), axis=1)
    token_B = jnp.where(state.done_B, PAD, token_B)
    # The stop token itself is recorded: a row is done from the next token on.
    stop_1X = jnp.asarray(stop_ids, jnp.int32)[None]
    stopped_B = jnp.any(token_B[:, None] == stop_1X, axis=1)
    return state.replace(
        length=state.length + 1,
        done_B=state.done_B | stopped_B,
        token_BR=put(state.token_BR, token_B, axis=1),
        logp_BR=put(state.logp_BR, if_going(logp_B), axis=1),
        policy_logp_BR=policy_logp_BR,
    )


def _is_plain(sampling: Sampling) -> bool:
    """Whether tokens are drawn from the policy's own distribution."""
    return (sampling.temperature, sampling.top_p, sampling.top_k) == (1, 1, 0)
