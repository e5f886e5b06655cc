"""Measure the accuracy of the quickstart's base model, alone and with help.

  python -m experiments.quickstart.measure_base \
      --folder=experiments/quickstart/base

All responses are sampled at temperature 1, for lists of two and three words with a new
random meaning, which the base model cannot know.
"""

import argparse
import functools
import pathlib
import random
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.quickstart import examples, task
from sdpo_jax import distributed, reprompt
from sdpo_jax.batch import PAD
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.model import cache, decoder, huggingface
from sdpo_jax.model.families import Architecture

COUNT = 2048


class Base:
    """A checkpoint that answers prompts."""

    def __init__(self, arch: Architecture, params, tokenizer: Tokenizer):
        self.arch = arch
        self.params = params
        self.tokenizer = tokenizer

    def sample(self, prompts: Iterable[str], seed: int) -> list[str]:
        """One response to each prompt, at temperature 1."""
        contexts = [self.tokenizer.encode_chat("", prompt) for prompt in prompts]
        ids_BP = np.full((len(contexts), max(map(len, contexts))), PAD, np.int32)
        for ids_P, context in zip(ids_BP, contexts, strict=True):
            ids_P[len(ids_P) - len(context) :] = context
        ids_BR = _sample(self.arch, self.params, ids_BP, jax.random.key(seed))
        return [self._text(ids_R) for ids_R in np.asarray(ids_BR).tolist()]

    def probability(self, drawn: Sequence[examples.Example]) -> np.ndarray:
        """Probability [B, R] of each example's right tokens."""
        width = max(len(example.context) + len(example.fed) for example in drawn)
        batch = examples.pad(drawn, width)
        return np.asarray(_probability(self.arch, self.params, *batch[:3]))

    def _text(self, ids: list[int]) -> str:
        stop = self.tokenizer.stop_ids[0]
        return self.tokenizer.decode(ids[: ids.index(stop)] if stop in ids else ids)


@functools.partial(jax.jit, static_argnums=0)
def _sample(arch: Architecture, params, ids_BP, key) -> jax.Array:
    """Responses [B, R]; tokens after a stop token are meaningless."""
    params = decoder.unstack(arch, params, jnp.float32)
    unembedding = decoder.unembedding(arch, params)
    hidden_BD, keys_values = decoder.prefill(arch, params, ids_BP)
    slots = cache.start(keys_values, ids_BP >= 0, 1, examples.RESPONSE_TOKENS)

    def step(carry, slot):
        hidden_BD, slots = carry
        draw_key = jax.random.fold_in(key, slot)
        ids_B = jax.random.categorical(draw_key, hidden_BD @ unembedding)
        return decoder.decode(arch, params, ids_B, slots, slot), ids_B

    _, ids_RB = jax.lax.scan(
        step, (hidden_BD, slots), jnp.arange(examples.RESPONSE_TOKENS)
    )
    return ids_RB.T


@functools.partial(jax.jit, static_argnums=0)
def _probability(arch: Architecture, params, ids_BT, place_BR, target_BR) -> jax.Array:
    hidden_BTD = decoder.hidden(arch, params, ids_BT, dtype=jnp.float32)
    hidden_BRD = jnp.take_along_axis(hidden_BTD, place_BR[..., None], axis=1)
    probability_BRV = jax.nn.softmax(hidden_BRD @ decoder.unembedding(arch, params))
    return jnp.take_along_axis(probability_BRV, target_BR[..., None], axis=2)[..., 0]


def solved(problem: examples.Problem, response: str) -> bool:
    """Whether a well-formed response passes the problem's tests."""
    operations = examples.read_operations(response)
    return operations is not None and examples.is_right(problem, operations)


def draw_problems(known: float) -> list[examples.Problem]:
    """Problems of two and three words; `known` is the share of known words."""
    rng = random.Random(1)
    return [examples.draw_problem(rng, rng.choice((2, 3)), known) for _ in range(COUNT)]


def mean(flags: Iterable) -> float:
    """Share of the flags that are true."""
    return float(np.mean([bool(flag) for flag in flags]))


def rate(base: Base, problems: Sequence[examples.Problem], prompts) -> float:
    """Share of the problems that the base model solves with these prompts."""
    return mean(map(solved, problems, base.sample(prompts, seed=1)))


def report(base: Base) -> None:
    """Print the share of right answers of the base model, alone and with help."""
    known, problems = draw_problems(1.0), draw_problems(0.0)
    attempts = base.sample([task.prompt(p.words) for p in problems], seed=0)
    pairs = list(zip(problems, attempts, strict=True))
    print("share of answers, at temperature 1")
    show("known words: right", rate(base, known, [task.prompt(p.words) for p in known]))
    show("made-up words: right", mean(solved(*pair) for pair in pairs))
    show("made-up words: well formed", mean(map(examples.read_operations, attempts)))
    show("made-up words: distinct programs", len(set(attempts)) / len(attempts))
    wrong = [p for p in pairs if examples.read_operations(p[1]) and not solved(*p)]
    report_help(base, wrong)


def report_help(base: Base, wrong: Sequence[tuple[examples.Problem, str]]) -> None:
    """Print how much a solution and feedback help, after and on wrong attempts."""
    problems = [problem for problem, _ in wrong]
    solutions = [task.answer(problem.operations) for problem in problems]
    feedbacks = [examples.feedback(*pair) for pair in wrong]
    nothing = [None] * len(wrong)
    helped = {
        "feedback on a wrong attempt": list(
            map(helped_prompt, problems, nothing, feedbacks)
        ),
        "a solution": list(map(helped_prompt, problems, solutions, nothing)),
        "both": list(map(helped_prompt, problems, solutions, feedbacks)),
    }
    for name, prompts in helped.items():
        show(f"made-up words: right after {name}", rate(base, problems, prompts))
    print("probability of the right operation, at each slot of a wrong attempt")
    bare = {"no help": [task.prompt(problem.words) for problem in problems]}
    for name, prompts in {**bare, **helped}.items():
        report_slots(base, wrong, prompts, name)


def helped_prompt(
    problem: examples.Problem, solution: str | None, feedback: str | None
) -> str:
    """The prompt of `problem` with a solution, feedback or both added."""
    shown = reprompt.Shown(solution, None, feedback)
    return reprompt.render(examples.RULES, task.prompt(problem.words), shown)


def show(name: str, value: float) -> None:
    """Print one line of the table."""
    print(f"{value:8.4f}  {name}", flush=True)


def report_slots(base: Base, wrong, prompts: list[str], name: str) -> None:
    """Print the probability of the right operation at each slot of wrong attempts."""
    drawn = [
        examples.supervise(
            base.tokenizer, prompt, attempt, task.answer(problem.operations)
        )
        for prompt, (problem, attempt) in zip(prompts, wrong, strict=True)
    ]
    probability_BR = base.probability(drawn)
    groups = {"right before it": [], "wrong before it": []}
    for example, probability_R in zip(drawn, probability_BR, strict=True):
        misled = False
        for index in example.slots():
            group = groups["wrong before it" if misled else "right before it"]
            group.append(probability_R[index])
            misled |= example.fed[index] != example.right[index]
    for group, values in groups.items():
        show(f"{name}, {group}", float(np.mean(values)))


def main() -> None:
    """Measure the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    folder = parser.parse_args().folder
    arch = huggingface.architecture(folder)
    mesh = distributed.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    params = huggingface.load(folder, arch, mesh)
    report(Base(arch, params, Tokenizer(folder)))


if __name__ == "__main__":
    main()
