"""The shapes and switches of a decoder, read from a Hugging Face config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ between the layers of one decoder."""

    rope_theta: float


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A decoder: its sizes, and the kinds of layers that repeat along its depth.

    Args:
      period: the layer kinds of one period; the decoder repeats it to its depth.
      tied: the output head is the embedding.
      max_positions: longest sequence that the positions were trained for.
    """

    family: str
    vocab: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    norm_eps: float
    tied: bool
    max_positions: int
    period: tuple[LayerKind, ...]

    @property
    def num_periods(self) -> int:
        """How often the period repeats."""
        return self.layers // len(self.period)


def from_huggingface(raw: Mapping[str, Any]) -> Architecture:
    """The architecture that a raw config.json describes.

    Raises:
      ValueError: if the architecture, or a field's value, is not supported; the
        message names the field.
    """
    model_type = raw.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"config.json: model_type={model_type!r} is not supported; "
            f"supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type](raw)


def _qwen3(raw: Mapping[str, Any]) -> Architecture:
    _require(raw, "hidden_act", "silu")
    _require(raw, "attention_bias", False)
    _require(raw, "use_sliding_window", False)
    return Architecture(
        family="qwen3",
        vocab=_field(raw, "vocab_size"),
        width=_field(raw, "hidden_size"),
        mlp_width=_field(raw, "intermediate_size"),
        layers=_field(raw, "num_hidden_layers"),
        heads=_field(raw, "num_attention_heads"),
        kv_heads=_field(raw, "num_key_value_heads"),
        head_width=_field(raw, "head_dim"),
        norm_eps=_field(raw, "rms_norm_eps"),
        tied=_field(raw, "tie_word_embeddings"),
        max_positions=_field(raw, "max_position_embeddings"),
        period=(LayerKind(rope_theta=_rope_theta(raw)),),
    )


FAMILIES = {"qwen3": _qwen3}


def _field(raw: Mapping[str, Any], name: str) -> Any:
    if name not in raw:
        raise ValueError(f"config.json: the field {name!r} is missing")
    return raw[name]


def _require(raw: Mapping[str, Any], name: str, supported: Any) -> None:
    if raw.get(name, supported) != supported:
        raise ValueError(
            f"config.json: {name}={raw[name]!r} is not supported, only {supported!r}"
        )


def _rope_theta(raw: Mapping[str, Any]) -> float:
    """Base of the rotary angles, in the spelling of transformers 5 or of 4."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ValueError(f"config.json: rope_type={rope_type!r} is not supported")
    theta = rope.get("rope_theta", raw.get("rope_theta"))
    if theta is None:
        raise ValueError("config.json: neither rope_parameters nor rope_theta is set")
    return float(theta)
