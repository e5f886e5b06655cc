"""Everything that a config names, built in one place: mesh, model, sampler, task."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sdpo_jax import config, distributed, envs, memory, methods, step, train_state
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.envs.base import Environment
from sdpo_jax.model import causal_attention, decoder, huggingface
from sdpo_jax.model.families import Architecture
from sdpo_jax.rollout import Engine
from sdpo_jax.rollout.sampler import Sampler

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Components:
    """A config and what it names."""

    config: ConfigDict
    mesh: Mesh
    arch: Architecture
    tokenizer: Tokenizer
    environment: Environment
    engine: Engine

    @property
    def model(self) -> tuple[ConfigDict, Architecture, Mesh]:
        """Config, model and mesh, as `learner` takes them."""
        return self.config, self.arch, self.mesh

    def load_params(self) -> Any:
        """The checkpoint's parameters on the mesh; float32 where they are trained."""
        dtype = train_state.loaded_dtype(self.config)
        return huggingface.load(self.config.model.path, self.arch, self.mesh, dtype)


def validate(c: ConfigDict) -> None:
    """Refuse what cannot work, before anything is read: knobs, then task and method.

    Raises:
      ValueError: one line that names the field, its value and what to change.
    """
    config.validate(c)
    envs.validate(c)
    methods.of(c).check(c)


@contextlib.contextmanager
def build(
    c: ConfigDict,
    environment: Environment | None = None,
    *,
    trains: bool = True,
    check_stop: Callable[[], None] = lambda: None,
) -> Iterator[Components]:
    """Build everything that a config names.

    Args:
      c: the run's config.
      environment: the caller's own, used instead of `config.env`'s and left open.
      trains: whether a state of training will be in memory beside what is built.
      check_stop: called by the sampler while it decodes.

    Yields:
      The components; an environment made here is closed at the end.

    Raises:
      ValueError: if the config makes no sense, or mesh, checkpoint and questions do
        not fit it.
    """
    # What is cheap to check comes first, what is slow to load last.
    validate(c)
    mesh = distributed.make_mesh(c.mesh)
    if trains:
        _check_rows(c, mesh)
    arch = huggingface.architecture(c.model.path)
    _check_lengths(c, arch, trains)
    decoder.shardings(arch, mesh)  # Refuses weights that do not divide over the mesh.
    limit = memory.device_bytes(mesh)
    rows_at_once = memory.rows_that_fit(c, arch, mesh, limit, trains)
    attention, why = _choose_attention(c, arch, mesh)
    tokenizer = Tokenizer(c.model.path, c.model.enable_thinking)
    tokenizer.check_rows(arch.vocab)
    engine = Sampler(
        arch,
        mesh,
        dtype=train_state.compute_dtype(c),
        stop_ids=tokenizer.stop_ids,
        max_prompt=c.rollout.max_prompt,
        rows_at_once=rows_at_once,
        attention=attention,
        check_stop=check_stop,
    )
    own = environment is None
    environment = envs.from_config(c) if own else environment
    _log.info("attention: %s, as %s", attention, why)
    try:
        yield Components(c, mesh, arch, tokenizer, environment, engine)
    finally:
        if own:
            environment.close()


def _check_rows(c: ConfigDict, mesh: Mesh) -> None:
    """Refuse steps that do not divide over the mesh."""
    step.check_rows(c, mesh)
    shards = distributed.batch_shards(mesh)
    if c.rollout.questions % shards:
        _log.warning(
            "rollout.questions=%d leaves devices idle: %d batch shards sample the "
            "same number of questions each",
            c.rollout.questions,
            shards,
        )


def _choose_attention(c: ConfigDict, arch: Architecture, mesh: Mesh) -> tuple[str, str]:
    """The implementation of attention, and the reason, for the log.

    Raises:
      ValueError: if the config names one that cannot run here.
    """
    requested, dtype = c.model.attention, train_state.compute_dtype(c)
    # How many slices the heads have, and so what can run, depends on the mesh.
    with jax.set_mesh(mesh):
        chosen = step.attention(c, arch)
        tensor = distributed.slices("heads")
    fused = causal_attention.FUSED.get(jax.default_backend(), "xla")
    preferred = fused if requested == "auto" else requested
    obstacle = causal_attention.obstacle(preferred, arch, dtype, tensor)
    if obstacle and requested != "auto":
        raise ValueError(
            f"model.attention={requested}: {obstacle}; set model.attention to auto or "
            "xla"
        )
    backend = jax.default_backend()
    return chosen, obstacle or f"model.attention={requested} on {backend}"


def _check_lengths(c: ConfigDict, arch: Architecture, trains: bool) -> None:
    """Refuse sequences and supports that the model cannot hold."""
    # The longer one of the two, where there is a teacher to read it.
    reads_reprompt = trains and methods.of(c).reads_teacher
    name = "reprompt.max_length" if reads_reprompt else "rollout.max_prompt"
    if config.get(c, name) + c.rollout.max_response > arch.max_positions:
        raise ValueError(
            f"{name}={config.get(c, name)} + rollout.max_response="
            f"{c.rollout.max_response} exceeds the model's {arch.max_positions} "
            "positions"
        )
    if not trains or methods.of(c).divergence is None:
        return
    divergence = methods.of(c).divergence(c)
    if divergence.support == "top_k" and divergence.top_k >= arch.vocab:
        raise ValueError(
            f"{c.method}.top_k={divergence.top_k} is not below the vocabulary of "
            f"{arch.vocab}; lower it or set {c.method}.support=full"
        )
