import math

import numpy as np
import pytest

from sdpo_jax.model import attention, families
from sdpo_jax.model.families import LayerKind, Yarn

# The fields of published checkpoints that decide their shape.
QWEN3_8B = dict(
    model_type="qwen3",
    attention_bias=False,
    head_dim=128,
    hidden_act="silu",
    hidden_size=4096,
    intermediate_size=12288,
    max_position_embeddings=40960,
    max_window_layers=36,
    num_attention_heads=32,
    num_hidden_layers=36,
    num_key_value_heads=8,
    rms_norm_eps=1e-6,
    rope_scaling=None,
    rope_theta=1000000,
    sliding_window=None,
    tie_word_embeddings=False,
    use_sliding_window=False,
    vocab_size=151936,
)
QWEN25_7B = dict(
    model_type="qwen2",
    hidden_act="silu",
    hidden_size=3584,
    intermediate_size=18944,
    max_position_embeddings=32768,
    max_window_layers=28,
    num_attention_heads=28,
    num_hidden_layers=28,
    num_key_value_heads=4,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    sliding_window=131072,
    tie_word_embeddings=False,
    use_sliding_window=False,
    vocab_size=152064,
)
OLMO3_7B = dict(
    model_type="olmo3",
    attention_bias=False,
    hidden_act="silu",
    hidden_size=4096,
    intermediate_size=11008,
    max_position_embeddings=65536,
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=32,
    rms_norm_eps=1e-6,
    rope_scaling={
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    rope_theta=500000,
    sliding_window=4096,
    tie_word_embeddings=False,
    vocab_size=100278,
)


def changed(raw, **changes):
    return {k: v for k, v in {**raw, **changes}.items() if v != "absent"}


def test_qwen3_has_one_kind_of_layer():
    arch = families.from_huggingface(QWEN3_8B)

    assert arch.period == (LayerKind(1e6),)
    assert len(arch.kinds) == arch.num_periods == 36
    assert (arch.heads, arch.kv_heads, arch.head_width) == (32, 8, 128)
    assert arch.qk_norm == "head" and not arch.qkv_bias and not arch.post_norm


def test_qwen25_has_biases_and_heads_that_share_the_width():
    arch = families.from_huggingface(QWEN25_7B)

    assert arch.period == (LayerKind(1e6),)
    assert arch.head_width == 128
    assert arch.qk_norm == "none" and arch.qkv_bias and not arch.post_norm


def test_qwen_windows_begin_after_max_window_layers():
    raw = changed(QWEN25_7B, use_sliding_window=True, max_window_layers=26)

    kinds = families.from_huggingface(raw).kinds

    assert [kind.window for kind in kinds] == [None] * 26 + [131072] * 2


def test_olmo3_slides_on_three_layers_of_four_and_stretches_the_fourth():
    arch = families.from_huggingface(OLMO3_7B)

    slides = LayerKind(5e5, window=4096)
    yarn = Yarn(8.0, 8192, 0.1 * math.log(8) + 1, 32.0, 1.0, True)
    assert arch.period == (slides, slides, slides, LayerKind(5e5, yarn=yarn))
    assert arch.num_periods == 8 and arch.head_width == 128
    assert arch.qk_norm == "width" and arch.post_norm and arch.scale_before_cast


def test_both_spellings_of_rope_are_read():
    older = QWEN3_8B
    newer = changed(
        older,
        rope_theta="absent",
        rope_scaling="absent",
        rope_parameters={"rope_type": "default", "rope_theta": 1000000},
    )
    assert families.from_huggingface(newer) == families.from_huggingface(older)

    newer = changed(
        OLMO3_7B,
        rope_theta="absent",
        rope_scaling="absent",
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000},
            "full_attention": {**OLMO3_7B["rope_scaling"], "rope_theta": 500000},
        },
        layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 8,
    )
    assert families.from_huggingface(newer) == families.from_huggingface(OLMO3_7B)


def test_layers_that_never_repeat_are_one_period():
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    raw = changed(OLMO3_7B, num_hidden_layers=3, layer_types=types)

    arch = families.from_huggingface(raw)

    assert arch.num_periods == 1
    assert [kind.window for kind in arch.period] == [None, 4096, 4096]


def test_attention_factor_of_yarn_follows_from_its_factor():
    scaling = changed(OLMO3_7B["rope_scaling"], attention_factor="absent")
    raw = changed(OLMO3_7B, rope_scaling=scaling)

    assert families.from_huggingface(raw) == families.from_huggingface(OLMO3_7B)


def test_yarn_slows_what_turns_less_than_once():
    yarn = Yarn(4.0, 2048, 1.0, beta_fast=32.0, beta_slow=1.0, truncate=False)
    plain = attention.rope_frequencies(LayerKind(1e4), 64)

    slowed = attention.rope_frequencies(LayerKind(1e4, yarn=yarn), 64)

    turns = plain * yarn.original_positions / (2 * np.pi)
    np.testing.assert_allclose(slowed[turns > 32], plain[turns > 32])
    np.testing.assert_allclose(slowed[turns < 1], plain[turns < 1] / 4)
    between = (turns < 31) & (turns > 1.1)
    assert between.any()
    assert np.all((slowed < plain)[between] & (slowed > plain / 4)[between])


@pytest.mark.parametrize(
    "raw, changes, message",
    [
        (
            QWEN3_8B,
            {"model_type": "gpt2"},
            "model_type='gpt2' is not supported; supported: qwen2, qwen3, olmo3",
        ),
        (QWEN3_8B, {"model_type": "absent"}, "model_type=None"),
        (QWEN3_8B, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (QWEN3_8B, {"attention_bias": True}, "attention_bias=True"),
        (QWEN3_8B, {"use_sliding_window": True, "max_window_layers": 1}, "sliding_w"),
        (QWEN3_8B, {"head_dim": "absent"}, "the field 'head_dim' is missing"),
        (QWEN3_8B, {"num_attention_heads": 12}, "num_key_value_heads=8 does not div"),
        (QWEN3_8B, {"num_hidden_layers": 0}, "num_hidden_layers=0 is no positive"),
        (QWEN3_8B, {"vocab_size": "many"}, "vocab_size='many' is no positive"),
        (QWEN3_8B, {"rope_scaling": {"rope_type": "llama3"}}, "rope_type='llama3'"),
        (QWEN3_8B, {"rope_scaling": {"type": "linear"}}, "rope_type='linear'"),
        (QWEN3_8B, {"rope_theta": "absent"}, "neither rope_parameters nor rope_theta"),
        (QWEN3_8B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (
            QWEN25_7B,
            {"layer_types": ["sliding_attention"] * 28},
            "layer_types has 'sliding_attention', but use_sliding_window is false",
        ),
        (QWEN25_7B, {"hidden_size": 3580}, "num_attention_heads=28 does not divide"),
        (OLMO3_7B, {"layer_types": ["full_attention"]}, "layer_types names 1 layers"),
        (OLMO3_7B, {"layer_types": ["chunked"] * 32}, "layer_types='chunked'"),
        (OLMO3_7B, {"sliding_window": None}, "the field 'sliding_window' is missing"),
    ],
)
def test_unsupported_config_is_refused_by_its_field(raw, changes, message):
    with pytest.raises(ValueError, match=message):
        families.from_huggingface(changed(raw, **changes))
