"""The arrays that text is converted to, and the legend of their axes.

Every array's name ends in its axes:

  B batch rows       U questions (unique prompts)   G attempts per question
  P prompt           Q reprompt                     R response
  T any token axis   S cache slots                  C positions of one chunk
  V vocabulary       K kept tokens (and their tail)
  D width            F MLP width                    L layers
  H query heads      N key-value heads              E head width
  1 a kept axis of size one

Stored token ids are padded with PAD, prompts on the left and responses on the right, so
`ids >= 0` is true where a token exists, whatever the tokenizer's own padding token.
"""

import flax.struct
import jax

PAD = -1


@flax.struct.dataclass
class Attempts:
    """Prompts and sampled responses; rows that share a prompt are neighbours.

    Args:
      prompt_BP: token ids, padded left.
      response_BR: token ids, padded right; the end-of-text token is kept.
      response_mask_BR: true on tokens that the policy generated. A multi-step episode
        also holds the environment's words in `response_BR`, masked out here.
      sampler_logp_BR: nats, under the distribution that was actually sampled from; None
        where the method does not read them.
      policy_logp_BR: nats, at temperature 1 over the full vocabulary; None where that
        is the distribution that was sampled from.
      rows_per_prompt: number of neighbouring rows, from the first on, that hold one
        prompt, which is read once for them. Fixed when a program is compiled.
    """

    prompt_BP: jax.Array
    response_BR: jax.Array
    response_mask_BR: jax.Array
    sampler_logp_BR: jax.Array | None
    policy_logp_BR: jax.Array | None = None
    rows_per_prompt: int = flax.struct.field(pytree_node=False, default=1)


@flax.struct.dataclass
class Batch:
    """The inputs of one update; fields that the method does not read are None.

    Args:
      attempts: prompts and responses.
      has_target_B: false where there is nothing to teach; such a row is masked out.
      loss_weight_B: weight of each row in the loss.
      reprompt_BQ: what the teacher reads before the same response, padded left.
      advantage_B: score relative to those of all attempts at the question.
      old_logp_BR: nats, the trainer's log-probabilities before the first of several
        optimiser steps on these attempts; None when there is only one step, whose
        importance ratio is 1.
    """

    attempts: Attempts
    has_target_B: jax.Array
    loss_weight_B: jax.Array
    reprompt_BQ: jax.Array | None = None
    advantage_B: jax.Array | None = None
    old_logp_BR: jax.Array | None = None
