"""The embedded engine: a jitted sampler on the trainer's own devices.

A prompt is read once and shared by its attempts. Decoding is a `while_loop` that ends
when every row has stopped or the cache is full; the cache then doubles, so short
responses never pay for the longest allowed. Every row draws from its own key.
"""

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
from sdpo_jax.rollout import Sampling

Params = Any
# Response tokens that the cache has room for at first.
_FIRST_SLOTS = 64
# Vocabulary entries whose probabilities are summed as one before a token is drawn.
_BLOCK = 128


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
      rows_at_once: attempts decoded together.
      attention: how prompts are read, see `causal_attention`.
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
    ):
        self._mesh = mesh
        self._max_prompt = max_prompt
        self._rows_at_once = rows_at_once
        self._prepare = jax.jit(functools.partial(_prepare, arch, dtype))
        start = functools.partial(_start, arch, tuple(stop_ids), attention)
        self._start = jax.jit(start, static_argnames=("sampling", "slots"))
        # Nothing is donated: the larger arrays cannot use the buffers of the smaller.
        self._grow = jax.jit(kv_cache.grow, static_argnames="slots")
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
        size = self._group_size(len(prompts), sampling.attempts)
        groups = []
        with jax.set_mesh(self._mesh):
            weights = self._prepare(params)
            for first in range(0, len(prompts), size):
                drawn = self._sample_group(
                    weights, prompt_UP, ids_U, first, size, sampling, key
                )
                group_UP = prompt_UP[first : first + size]
                groups.append(_attempts(group_UP, *drawn, sampling.attempts))
                start = first * sampling.attempts
                each(slice(start, start + len(groups[-1].prompt_BP)), groups[-1])
        return jax.tree.map(lambda *x: np.concatenate(x), *groups)

    def _group_size(self, prompts: int, attempts: int) -> int:
        """Prompts per group: a multiple of the batch shards, equal for all groups."""
        shards = distributed.batch_shards(self._mesh)
        most = max(self._rows_at_once // (attempts * shards), 1)
        return shards * min(most, -(-prompts // shards))

    def _sample_group(self, weights, prompt_UP, ids_U, first, size, sampling, key):
        # The last group is padded with copies of its first prompt, so that all groups
        # have the same shapes; `_attempts` drops their rows.
        index = np.arange(first, first + size)
        index = np.where(index < len(ids_U), index, first)
        group = distributed.to_devices((prompt_UP[index], ids_U[index]), self._mesh)
        slots = min(_FIRST_SLOTS, sampling.max_response)
        state = self._start(weights, *group, key, sampling=sampling, slots=slots)
        # Each size of the cache is a program of its own; in between the host waits for
        # `ended`.
        while True:
            state, ended = self._extend(weights, state, sampling=sampling)
            if slots == sampling.max_response or bool(ended):
                drawn = (state.token_BR, state.logp_BR, state.policy_logp_BR)
                return distributed.to_host(drawn)
            slots = min(2 * slots, sampling.max_response)
            state = state.replace(cache=self._grow(state.cache, slots=slots))


def _attempts(prompt_UP, token_BR, logp_BR, policy_logp_BR, group: int) -> Attempts:
    """The attempts of these prompts, without the rows that only pad their group."""
    prompt_BP = np.repeat(prompt_UP, group, axis=0)
    drawn = (token_BR, logp_BR, policy_logp_BR)
    token_BR, *logp = jax.tree.map(lambda x_BR: x_BR[: len(prompt_BP)], drawn)
    return Attempts(prompt_BP, token_BR, token_BR >= 0, *logp, rows_per_prompt=group)


def _prepare(arch: Architecture, dtype: jnp.dtype, params: Params) -> Params:
    """Weights for sampling: unstacked, in `dtype`, and replicated over `fsdp`.

    Sharded over `fsdp` they would be gathered again for every token. Adapters are small
    and replicated on every device.
    """
    weights = decoder.unstack(arch, params, dtype)
    adapters = weights.pop("adapters", None)
    axes = decoder.unstacked_axes(arch)
    # The logical axes of weights that `fsdp` shards, and what is left of them.
    without_fsdp = {"embed": None, "table": "width_over_tensor"}
    place = lambda w, axes: constrain(w, *(without_fsdp.get(a, a) for a in axes))
    weights = jax.tree.map(place, weights, axes)
    if adapters is None:
        return weights
    replicate = lambda w: constrain(w, *(None,) * w.ndim)
    return {**weights, "adapters": jax.tree.map(replicate, adapters)}


def _start(
    arch, stop_ids, attention, weights, prompt_UP, ids_U, key, *, sampling, slots
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
    uniform_BR = _uniforms(key, ids_U, group, sampling.max_response)
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


def _uniforms(key: jax.Array, ids_U: jax.Array, group: int, length: int) -> jax.Array:
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
    uniform = over_prompts(ids_U, jnp.arange(group), jnp.arange(length))
    return uniform.reshape(-1, length)


def _extend(arch, stop_ids, weights, state, *, sampling):
    """Draw tokens until the cache is full or every row has stopped."""

    # A while_loop and not a scan, because it ends with the last row. It starts with one
    # token drawn: each turn reads the last token and draws the next one.
    def body(state: _State) -> _State:
        last = state.length - 1
        take = jax.lax.dynamic_index_in_dim
        token_B = take(state.token_BR, last, axis=1, keepdims=False)
        hidden, cache = decoder.decode(arch, weights, token_B, state.cache, last)
        state = state.replace(cache=cache)
        return _draw_next(arch, stop_ids, weights, state, hidden, sampling)

    going_on = lambda state: (state.length < state.cache.slots) & ~jnp.all(state.done_B)
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
    # vocabulary.
    logits_BV = constrain(logits_BV, "batch", None)
    token_B, logp_B = draw(logits_BV, uniform_B, sampling)
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=state.length)
    # Rows that have stopped are computed along with the others, and record padding.
    if_going = lambda x_B: jnp.where(state.done_B, 0.0, x_B)
    policy_logp_BR = state.policy_logp_BR
    if policy_logp_BR is not None:
        policy_logp_B = _log_prob(jax.nn.log_softmax(logits_BV, axis=-1), token_B)
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


def _log_prob(logp_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logp_BV, token_B[:, None], axis=-1)[:, 0]


def draw(
    logits_BV: jax.Array, uniform_B: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """One token per row, and its log-probability under the distribution drawn from.

    One uniform number per row picks the token by inverting the cumulative
    distribution; noise for every entry of the vocabulary would cost more than the rest.

    Args:
      logits_BV: float32.
      uniform_B: in [0, 1).
      sampling: temperature, top-p and top-k; a temperature of 0 takes the most likely
        token, with log-probability 0.

    Returns:
      Token ids [B], and nats [B].
    """
    if sampling.temperature == 0:
        best_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        return best_B, jnp.zeros_like(uniform_B)
    logits_BV = keep_likely(
        logits_BV / sampling.temperature, sampling.top_k, sampling.top_p
    )
    logp_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    token_B = _invert(jnp.exp(logp_BV), uniform_B)
    return token_B, _log_prob(logp_BV, token_B)


def _invert(p_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """First index whose cumulative probability exceeds the uniform number.

    A block of the vocabulary is found first and then an entry in it: two short running
    sums are faster than a long one, and float32 rounds less.
    """
    rows, vocab = p_BV.shape
    # Padding has no probability, so it is never chosen.
    padded = jnp.pad(p_BV, ((0, 0), (0, -vocab % _BLOCK)))
    blocks_BXY = padded.reshape(rows, -1, _BLOCK)
    block_B, rest_B = _first_above(jnp.sum(blocks_BXY, axis=-1), uniform_B)
    inside_BY = jnp.take_along_axis(blocks_BXY, block_B[:, None, None], axis=1)[:, 0]
    # What is left of the target becomes a share of the block that it is in.
    total_B = jnp.sum(inside_BY, axis=-1)
    index_B, _ = _first_above(inside_BY, rest_B / total_B)
    return block_B * _BLOCK + index_B


def _first_above(p_BX: jax.Array, share_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First index where the running sum exceeds `share_B` of the total.

    Returns:
      The index, and the part of the target that is within its entry. Only entries with
      a positive probability are ever chosen.
    """
    # A parallel running sum rounds differently from entry to entry, so it may rise or
    # fall where nothing is added: entries without probability are excluded.
    running_BX = jnp.where(p_BX > 0, jnp.cumsum(p_BX, axis=-1), 0.0)
    total_B = jnp.max(running_BX, axis=-1)
    # Rounding must not carry the target up to the total, above which there is no entry.
    target_B = jnp.clip(share_B * total_B, 0.0, total_B * (1 - 2**-22))
    above_BX = running_BX > target_B[:, None]
    index_B = jnp.argmax(above_BX, axis=-1).astype(jnp.int32)
    chosen_B = jnp.take_along_axis(p_BX, index_B[:, None], axis=-1)[:, 0]
    reached_B = jnp.take_along_axis(running_BX, index_B[:, None], axis=-1)[:, 0]
    return index_B, target_B - (reached_B - chosen_B)


def keep_likely(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Logits with -inf where top-k, then top-p, exclude a token; ties are kept.

    The thresholds are found by bisection over the bits of a float, which is exact and
    needs no sort of the vocabulary.
    """
    # -inf is the probability 0 exactly, and it is safe in the softmax of a draw: the
    # most likely token is always kept.
    if top_k and top_k < logits_BV.shape[-1]:
        p_BV = jax.nn.softmax(logits_BV, axis=-1)
        enough = lambda kept_BV: jnp.sum(kept_BV, axis=-1) >= top_k
        logits_BV = jnp.where(_smallest_set(p_BV, enough), logits_BV, -jnp.inf)
    if top_p < 1:
        # Of the tokens that top-k kept, renormalised, as in transformers.
        p_BV = jax.nn.softmax(logits_BV, axis=-1)
        enough = lambda kept_BV: jnp.sum(p_BV, axis=-1, where=kept_BV) >= top_p
        logits_BV = jnp.where(_smallest_set(p_BV, enough), logits_BV, -jnp.inf)
    return logits_BV


def _smallest_set(p_BV: jax.Array, enough) -> jax.Array:
    """Mask of the fewest most likely entries for which `enough` is true."""
    # Non-negative floats are ordered as their bits are, read as integers.
    bits_BV = jax.lax.bitcast_convert_type(p_BV, jnp.int32)
    low_B = jnp.zeros(p_BV.shape[:1], jnp.int32)
    high_B = jnp.max(bits_BV, axis=-1)

    # The threshold is always within [low, high]: entries of at least `low` are enough,
    # entries above `high` are not.
    def halve(_, bounds):
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B + 1) // 2
        is_enough_B = enough(bits_BV >= middle_B[:, None])
        low_B = jnp.where(is_enough_B, middle_B, low_B)
        return low_B, jnp.where(is_enough_B, high_B, middle_B - 1)

    # 31 bits besides the sign, hence 31 halvings.
    low_B, _ = jax.lax.fori_loop(0, 31, halve, (low_B, high_B))
    return bits_BV >= low_B[:, None]
