"""The sizes and switches of a decoder, read from a Hugging Face config.json.

Every field of the file is either read here, or only accepted with the value that the
decoder implements (`_ONLY`), or known to change nothing that it computes (`_HARMLESS`);
`unknown_fields` names the others, which transformers ignores too.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sdpo_jax.model import rotary_fields
from sdpo_jax.model.config_fields import Fields
from sdpo_jax.model.layer_kind import LayerKind as LayerKind
from sdpo_jax.model.layer_kind import Llama3 as Llama3
from sdpo_jax.model.layer_kind import Yarn as Yarn
from sdpo_jax.model.rotary_fields import FULL, SLIDING


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
    "llama": dict(
        qkv_bias=False, qk_norm="none", post_norm=False, scale_before_cast=False
    ),
    "olmo2": dict(
        qkv_bias=False, qk_norm="width", post_norm=True, scale_before_cast=True
    ),
}
_QWEN = ("qwen2", "qwen3")
# What transformers, in every version, takes where a family's file has no rope_theta.
# The other families' files must have it.
_THETA = {"llama": 10_000.0}

# Fields of other models, or of variants of ours, with the value that they have where
# they change nothing. Missing fields and nulls are accepted as well.
_ONLY = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "is_causal": True,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "use_bidirectional_attention": False,
    "use_mrope": False,
    "rope_interleaved": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "clip_qkv": None,
    "attention_chunk_size": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": None,
    "query_pre_attn_scalar": None,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "per_layer_config": None,
    "pruned_heads": {},
    "num_experts": None,
    "num_local_experts": None,
    "text_config": None,
    "vision_config": None,
}
_HARMLESS = frozenset(
    # What the file is and how it was saved.
    "architectures torch_dtype dtype transformers_version _name_or_path name_or_path "
    "_commit_hash tokenizer_class unsloth_version unsloth_fixed transformers.js_config "
    "is_llama_config "
    # How transformers runs it; initial weights, of which there are none to draw.
    "use_cache initializer_range pretraining_tp chunk_size_feed_forward return_dict "
    "return_dict_in_generate output_attentions output_hidden_states torchscript "
    "attn_implementation _attn_implementation _attn_implementation_autoset is_decoder "
    "gradient_checkpointing tie_encoder_decoder "
    # Heads for classification.
    "id2label label2id num_labels problem_type finetuning_task task_specific_params "
    # Tokens and sampling, which the tokenizer and rollout.* say.
    "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id "
    "decoder_start_token_id do_sample temperature top_k top_p max_length min_length "
    "max_new_tokens repetition_penalty length_penalty no_repeat_ngram_size num_beams "
    # The trained length matters to a rotary scaling only, which reads it.
    "original_max_position_embeddings".split()
)


def from_huggingface(raw: Mapping[str, Any]) -> Architecture:
    """The architecture that a raw config.json describes.

    Raises:
      ValueError: if the architecture, or a field's value, is not supported; the
        message names the field.
    """
    return _read(Fields(raw))


def unknown_fields(raw: Mapping[str, Any]) -> list[str]:
    """Fields that nothing here knows and that have a value."""
    config = Fields(raw)
    _read(config)
    return sorted(config.unread().keys() - _HARMLESS)


def _read(config: Fields) -> Architecture:
    family = config.get("model_type")
    if family not in SWITCHES:
        raise ValueError(
            f"config.json: model_type={family!r} is not supported; "
            f"supported: {', '.join(SWITCHES)}"
        )
    for name in ("quantization_config", "compression_config"):
        if config.get(name):
            take = "take the weights that it was made from, in bfloat16 or float32"
            raise config.error(name, f"is not supported; {take}")
    for name, value in _ONLY.items():
        config.only(name, value)
    if family == "qwen2":
        config.get("attention_bias")  # It has biases always, whatever the field says.
    else:
        config.only("attention_bias", False)
    width, heads, kv_heads, head_width = _heads(config, family)
    return Architecture(
        family=family,
        vocab=config.positive("vocab_size"),
        width=width,
        mlp_width=config.positive("intermediate_size"),
        layers=config.positive("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        norm_eps=config.number("rms_norm_eps"),
        **SWITCHES[family],
        # The default of all these families in transformers.
        tied=config.boolean("tie_word_embeddings", False),
        max_positions=config.positive("max_position_embeddings"),
        period=_period(config, family),
    )


def _heads(config: Fields, family: str) -> tuple[int, int, int, int]:
    """Width, query heads, key-value heads and the width of a head."""
    width = config.positive("hidden_size")
    heads = config.positive("num_attention_heads")
    # A missing field means `heads` in transformers' other families, but 32 in its Qwen
    # models; those must state it.
    default = None if family in _QWEN else heads
    kv_heads = config.positive("num_key_value_heads", default)
    _divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    # For Qwen3 it need not be hidden_size / heads: transformers defaults to 128.
    if family == "qwen3" or config.get("head_dim") is not None:
        head_width = config.positive("head_dim")
    else:
        _divides("num_attention_heads", heads, "hidden_size", width)
        head_width = width // heads
    if family == "llama":
        # transformers refuses it, whatever head_dim says.
        _divides("num_attention_heads", heads, "hidden_size", width)
    # Rotary positions pair the two halves of a head.
    if head_width % 2:
        raise ValueError(f"config.json: a head width of {head_width} is odd")
    return width, heads, kv_heads, head_width


def layer_type(kind: LayerKind) -> str:
    """The name of a kind of layer in config.json."""
    return FULL if kind.window is None else SLIDING


def _period(config: Fields, family: str) -> tuple[LayerKind, ...]:
    """The shortest run of layer kinds that repeats to the full depth.

    The decoder scans over periods, so the shorter it is, the less is compiled.
    """
    windows = _windows(config, family)
    types = [FULL if window is None else SLIDING for window in windows]
    kinds = rotary_fields.kinds(
        config,
        sorted(set(types)),
        by_type=family == "olmo3",
        default_theta=_THETA.get(family),
    )
    layers = [
        dataclasses.replace(kinds[name], window=window)
        for name, window in zip(types, windows, strict=True)
    ]
    count = len(layers)
    lengths = [n for n in range(1, count + 1) if count % n == 0]
    fits = lambda n: layers == layers[:n] * (count // n)
    return tuple(layers[: next(filter(fits, lengths))])


def _windows(config: Fields, family: str) -> list[int | None]:
    """The window of every layer."""
    layers = config.positive("num_hidden_layers")
    # Defaults of transformers, which an explicit layer_types replaces below.
    slides, has_window = [False] * layers, False
    if family == "olmo3":
        has_window = True
        slides = [(layer + 1) % 4 != 0 for layer in range(layers)]
    elif family in _QWEN:
        first = config.get("max_window_layers", 28)
        if not isinstance(first, int) or isinstance(first, bool):
            raise config.error("max_window_layers", "is no integer")
        if has_window := config.boolean("use_sliding_window", False):
            slides = [layer >= first for layer in range(layers)]
    else:
        config.only("use_sliding_window", False)
        config.only("sliding_window", None)
    if config.get("layer_types") is not None:
        slides = _slides(config, layers)
    if any(slides) and not has_window:
        why = "use_sliding_window is false" if family in _QWEN else f"{family} has none"
        raise ValueError(f"config.json: layer_types has {SLIDING!r}, but {why}")
    config.get("sliding_window")  # Without sliding layers it may have any value.
    window = config.positive("sliding_window") if any(slides) else None
    return [window if slide else None for slide in slides]


def _slides(config: Fields, layers: int) -> list[bool]:
    layer_types = config.get("layer_types")
    if not isinstance(layer_types, list):
        raise config.error("layer_types", "is no list")
    unknown = [name for name in layer_types if name not in (FULL, SLIDING)]
    if unknown:
        raise ValueError(f"config.json: layer_types={unknown[0]!r} is not supported")
    if len(layer_types) != layers:
        raise ValueError(
            f"config.json: layer_types names {len(layer_types)} layers, "
            f"num_hidden_layers={layers}"
        )
    return [name == SLIDING for name in layer_types]


def _divides(small_name: str, small: int, name: str, value: int) -> None:
    if value % small:
        raise ValueError(
            f"config.json: {small_name}={small} does not divide {name}={value}"
        )
