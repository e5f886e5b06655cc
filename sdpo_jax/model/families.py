"""The sizes and switches of a decoder, read from a Hugging Face config.json."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

# Layer kinds as config.json spells them.
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True)
class Yarn:
    """How rotary angles are stretched beyond the trained length (arXiv:2309.00071).

    Args:
      factor: how much longer sequences may be.
      original_positions: the trained length, in tokens.
      attention_factor: factor on cosines and sines.
      beta_fast: turns within the original length above which a frequency is kept.
      beta_slow: turns below which a frequency is divided by `factor`.
      truncate: whether the ramp between the two is widened to integer dimensions.
    """

    factor: float
    original_positions: int
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ between the layers of one decoder.

    Args:
      rope_theta: base of the rotary angles.
      yarn: how they are stretched; None if they are not.
      window: tokens that a token attends to, itself included; None for all before it.
    """

    rope_theta: float
    yarn: Yarn | None = None
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A decoder: its sizes, its switches, and the kinds of layers along its depth.

    Args:
      qkv_bias: queries, keys and values have biases.
      qk_norm: "head" normalises each head's queries and keys, "width" those of all
        heads together, "none" leaves them as they are.
      post_norm: a branch's output is normalised, not its input.
      scale_before_cast: norms multiply by their scale before rounding to the dtype of
        activations.
      tied: the output head is the embedding.
      max_positions: the longest sequence that the positions are meant for.
      period: the layer kinds of one period; the decoder repeats it to its depth.
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
    qkv_bias: bool
    qk_norm: str
    post_norm: bool
    scale_before_cast: bool
    tied: bool
    max_positions: int
    period: tuple[LayerKind, ...]

    @property
    def num_periods(self) -> int:
        """Number of repetitions of the period."""
        return self.layers // len(self.period)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kind of every layer."""
        return self.period * self.num_periods


# How the families differ where config.json has no field that says so.
SWITCHES: dict[str, dict[str, Any]] = {
    "qwen2": dict(
        qkv_bias=True, qk_norm="none", post_norm=False, scale_before_cast=False
    ),
    "qwen3": dict(
        qkv_bias=False, qk_norm="head", post_norm=False, scale_before_cast=False
    ),
    "olmo3": dict(
        qkv_bias=False, qk_norm="width", post_norm=True, scale_before_cast=True
    ),
}


def from_huggingface(raw: Mapping[str, Any]) -> Architecture:
    """The architecture that a raw config.json describes.

    Raises:
      ValueError: if the architecture, or a field's value, is not supported; the
        message names the field.
    """
    family = raw.get("model_type")
    if family not in SWITCHES:
        raise ValueError(
            f"config.json: model_type={family!r} is not supported; "
            f"supported: {', '.join(SWITCHES)}"
        )
    _require(raw, "hidden_act", "silu")
    # A field of Qwen3 and Olmo3; Qwen2.5 has biases always, and no field for them.
    _require(raw, "attention_bias", False)
    width, heads = _positive(raw, "hidden_size"), _positive(raw, "num_attention_heads")
    # A missing field means `heads` in transformers' Olmo3, but 32 in its Qwen models;
    # those must state it.
    kv_heads = heads
    if raw.get("num_key_value_heads") is not None or family != "olmo3":
        kv_heads = _positive(raw, "num_key_value_heads")
    _divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    # For Qwen3 it need not be hidden_size / heads: transformers defaults to 128.
    if family == "qwen3" or raw.get("head_dim") is not None:
        head_width = _positive(raw, "head_dim")
    else:
        _divides("num_attention_heads", heads, "hidden_size", width)
        head_width = width // heads
    # Rotary positions pair the two halves of a head.
    if head_width % 2:
        raise ValueError(f"config.json: a head width of {head_width} is odd")
    return Architecture(
        family=family,
        vocab=_positive(raw, "vocab_size"),
        width=width,
        mlp_width=_positive(raw, "intermediate_size"),
        layers=_positive(raw, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        norm_eps=_field(raw, "rms_norm_eps"),
        **SWITCHES[family],
        tied=_field(raw, "tie_word_embeddings"),
        max_positions=_positive(raw, "max_position_embeddings"),
        period=_period(raw, family),
    )


def layer_type(kind: LayerKind) -> str:
    """The name of a kind of layer in config.json."""
    return FULL if kind.window is None else SLIDING


def _period(raw: Mapping[str, Any], family: str) -> tuple[LayerKind, ...]:
    """The shortest run of layer kinds that repeats to the full depth.

    The decoder scans over periods, so the shorter it is, the less is compiled.
    """
    windows = _windows(raw, family)
    kinds = {
        window: _layer_kind(raw, FULL if window is None else SLIDING, window)
        for window in set(windows)
    }
    layers = [kinds[window] for window in windows]
    count = len(layers)
    lengths = [n for n in range(1, count + 1) if count % n == 0]
    fits = lambda n: layers == layers[:n] * (count // n)
    return tuple(layers[: next(filter(fits, lengths))])


def _windows(raw: Mapping[str, Any], family: str) -> list[int | None]:
    """The window of every layer."""
    layers = _positive(raw, "num_hidden_layers")
    # Defaults of transformers, which an explicit layer_types replaces below.
    if family == "olmo3":
        slides = [(layer + 1) % 4 != 0 for layer in range(layers)]
        has_window = True
    else:
        first = raw.get("max_window_layers", 28)
        has_window = bool(raw.get("use_sliding_window", False))
        slides = [has_window and layer >= first for layer in range(layers)]
    if raw.get("layer_types") is not None:
        slides = _slides(raw["layer_types"], layers)
    if any(slides) and not has_window:
        raise ValueError(
            f"config.json: layer_types has {SLIDING!r}, but use_sliding_window is false"
        )
    window = _positive(raw, "sliding_window") if any(slides) else None
    return [window if slide else None for slide in slides]


def _slides(layer_types: Sequence[str], layers: int) -> list[bool]:
    unknown = set(layer_types) - {FULL, SLIDING}
    if unknown:
        raise ValueError(f"config.json: layer_types={min(unknown)!r} is not supported")
    if len(layer_types) != layers:
        raise ValueError(
            f"config.json: layer_types names {len(layer_types)} layers, "
            f"num_hidden_layers={layers}"
        )
    return [name == SLIDING for name in layer_types]


def _layer_kind(raw: Mapping[str, Any], name: str, window: int | None) -> LayerKind:
    """One kind of layer, from the rotary fields of transformers 5 or of version 4.

    In version 4, Olmo3 has one theta for all layers, and its scaling is for layers of
    full attention only.
    """
    given = raw.get("rope_parameters") or {}
    nested = FULL in given or SLIDING in given
    if nested:
        rope = given.get(name) or {}
    elif given:
        rope = given
    else:
        scaled = raw["model_type"] != "olmo3" or name == FULL
        rope = (raw.get("rope_scaling") if scaled else None) or {}
    theta = rope.get("rope_theta", raw.get("rope_theta"))
    if theta is None:
        raise ValueError("config.json: neither rope_parameters nor rope_theta is set")
    for place in (rope, raw):
        _require(place, "partial_rotary_factor", 1.0)
    # transformers reads it at the level of the layer types, not within one of them.
    truncate = (given if nested else rope).get("truncate", True)
    return LayerKind(float(theta), _yarn(raw, rope, truncate), window)


def _yarn(
    raw: Mapping[str, Any], rope: Mapping[str, Any], truncate: bool
) -> Yarn | None:
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type == "default":
        return None
    if rope_type != "yarn":
        raise ValueError(f"config.json: rope_type={rope_type!r} is not supported")
    for field in ("mscale", "mscale_all_dim"):
        _require(rope, field, None)
    positions = _positive(raw, "max_position_embeddings")
    # These defaults are those of transformers' YaRN.
    original = rope.get("original_max_position_embeddings", positions)
    factor = rope.get("factor") or positions / original
    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        attention_factor = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return Yarn(
        factor=float(factor),
        original_positions=original,
        attention_factor=float(attention_factor),
        beta_fast=float(rope.get("beta_fast") or 32),
        beta_slow=float(rope.get("beta_slow") or 1),
        truncate=bool(truncate),
    )


def _field(raw: Mapping[str, Any], name: str) -> Any:
    if raw.get(name) is None:
        raise ValueError(f"config.json: the field {name!r} is missing")
    return raw[name]


def _positive(raw: Mapping[str, Any], name: str) -> int:
    value = _field(raw, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: {name}={value!r} is no positive integer")
    return value


def _require(raw: Mapping[str, Any], name: str, supported: Any) -> None:
    if raw.get(name, supported) != supported:
        raise ValueError(
            f"config.json: {name}={raw[name]!r} is not supported, only {supported!r}"
        )


def _divides(small_name: str, small: int, name: str, value: int) -> None:
    if value % small:
        raise ValueError(
            f"config.json: {small_name}={small} does not divide {name}={value}"
        )
