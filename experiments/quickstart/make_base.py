"""Train the quickstart's base model, which can write programs and use feedback.

  python -m experiments.quickstart.make_base --seed=0 \
      --folder=experiments/quickstart/base

Writes a Hugging Face checkpoint with its tokenizer, then prints measurements of it.
"""

import argparse
import functools
import pathlib
import random
import tempfile
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.quickstart import examples, measure_base, tokenizer
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.model import decoder, families, huggingface_export

ARCHITECTURE = families.Architecture(
    family="qwen3",
    vocab=tokenizer.SIZE,
    width=128,
    mlp_width=320,
    layers=3,
    heads=4,
    kv_heads=2,
    head_width=32,
    norm_eps=1e-6,
    **families.SWITCHES["qwen3"],
    tied=True,
    max_positions=1024,
    period=(families.LayerKind(rope_theta=10_000.0),),
)
STEPS = 1000
BATCH = 64
PEAK_RATE = 3e-3
KERNEL_SCALE = 4.4  # From a deviation of 0.02 to 1 / sqrt(width).
EMBEDDING_SCALE = 2.0
WIDTHS = (40, 72)  # Tokens of the longest sequence of a batch's halves.


def batches_of(drawn: Sequence[examples.Example]) -> list[tuple[np.ndarray, ...]]:
    """The shorter and the longer half of the examples, each padded to its own width."""
    by_length = sorted(drawn, key=lambda example: len(example.context + example.fed))
    half = len(drawn) // 2
    return [
        examples.pad(by_length[:half], WIDTHS[0]),
        examples.pad(by_length[half:], WIDTHS[1]),
    ]


def nats(params, ids_BT, place_BR, target_BR, taught_BR) -> jax.Array:
    """Summed cross entropy of the taught tokens."""
    hidden_BTD = decoder.hidden(ARCHITECTURE, params, ids_BT, dtype=jnp.float32)
    hidden_BRD = jnp.take_along_axis(hidden_BTD, place_BR[..., None], axis=1)
    logits_BRV = hidden_BRD @ decoder.unembedding(ARCHITECTURE, params)
    nats_BR = optax.softmax_cross_entropy_with_integer_labels(logits_BRV, target_BR)
    return jnp.sum(nats_BR, where=taught_BR)


def loss(params, batches) -> jax.Array:
    """Mean cross entropy in nats of the taught tokens."""
    total = sum(nats(params, *batch) for batch in batches)
    return total / sum(jnp.sum(taught_BR) for *_, taught_BR in batches)


def start(seed: int) -> decoder.Params:
    """Random parameters, larger than the decoder's defaults.

    The defaults suit a wide model; with them this narrow one had learnt nothing after
    250 steps.
    """
    params = decoder.init(ARCHITECTURE, jax.random.key(seed))
    widen = lambda leaf: leaf * KERNEL_SCALE if leaf.ndim > 2 else leaf
    layers = jax.tree.map(widen, params["layers"])
    table_VD = params["embed"]["table_VD"] * EMBEDDING_SCALE
    return {**params, "layers": layers, "embed": {"table_VD": table_VD}}


def train(seed: int, encoder) -> decoder.Params:
    """Supervised warm-up; prints the loss."""
    rate = optax.warmup_cosine_decay_schedule(0.0, PEAK_RATE, 20, STEPS)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01)
    )
    params = start(seed)
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, batches):
        value, grads = jax.value_and_grad(loss)(params, batches)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    rng = random.Random(seed)
    began = time.monotonic()
    for step in range(STEPS):
        drawn = [examples.draw_example(rng, encoder) for _ in range(BATCH)]
        params, state, value = update(params, state, batches_of(drawn))
        if step % 50 == 49:
            seconds = time.monotonic() - began
            print(
                f"step {step + 1}: loss {value:.3f} nats, {seconds:.0f} s", flush=True
            )
    return params


def main() -> None:
    """Read the command line, train, save and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(pathlib.Path(folder))
        encoder = Tokenizer(folder)
    params = train(arguments.seed, encoder)
    huggingface_export.save(
        arguments.folder, ARCHITECTURE, params, source=None, dtype="bfloat16"
    )
    tokenizer.save(arguments.folder)
    measure_base.report(measure_base.Base(ARCHITECTURE, params, encoder))


if __name__ == "__main__":
    main()
