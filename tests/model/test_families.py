import copy
import math

import numpy as np
import pytest

from sdpo_jax.model import attention, families
from sdpo_jax.model.families import LayerKind, Llama3, Yarn

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

LLAMA31_8B = dict(
    model_type="llama",
    attention_bias=False,
    attention_dropout=0.0,
    hidden_act="silu",
    hidden_size=4096,
    intermediate_size=14336,
    max_position_embeddings=131072,
    mlp_bias=False,
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=8,
    pretraining_tp=1,
    rms_norm_eps=1e-5,
    rope_scaling={
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    rope_theta=500000.0,
    tie_word_embeddings=False,
    vocab_size=128256,
)
OLMO2_7B = dict(
    model_type="olmo2",
    attention_bias=False,
    attention_dropout=0.0,
    hidden_act="silu",
    hidden_size=4096,
    intermediate_size=11008,
    max_position_embeddings=4096,
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=32,
    rms_norm_eps=1e-6,
    rope_scaling=None,
    rope_theta=500000,
    tie_word_embeddings=False,
    vocab_size=100352,
)
PUBLISHED = [QWEN3_8B, QWEN25_7B, OLMO3_7B, LLAMA31_8B, OLMO2_7B]
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
}
LLAMA3 = LLAMA31_8B["rope_scaling"]


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


def test_llama_has_one_kind_of_layer_with_a_scaling_of_its_own():
    arch = families.from_huggingface(LLAMA31_8B)

    assert arch.period == (LayerKind(5e5, llama3=Llama3(8.0, 8192, 1.0, 4.0)),)
    assert (arch.heads, arch.kv_heads, arch.head_width) == (32, 8, 128)
    assert arch.qk_norm == "none" and not arch.qkv_bias and not arch.post_norm


def test_llama_without_a_theta_has_that_of_transformers():
    raw = changed(LLAMA31_8B, rope_theta="absent", rope_scaling="absent")
    assert families.from_huggingface(raw).period == (LayerKind(1e4),)


def test_olmo2_has_the_norms_of_olmo3_and_no_windows():
    arch = families.from_huggingface(OLMO2_7B)

    assert arch.period == (LayerKind(5e5),)
    assert arch.qk_norm == "width" and arch.post_norm and arch.scale_before_cast


@pytest.mark.parametrize("raw", PUBLISHED, ids=lambda raw: raw["model_type"])
def test_published_configs_have_no_unknown_field(raw):
    saved = changed(
        raw,
        architectures=["ForCausalLM"],
        bos_token_id=1,
        eos_token_id=[1, 2],
        torch_dtype="bfloat16",
        transformers_version="4.46.0",
        use_cache=True,
        use_mrope=False,
    )
    assert families.unknown_fields(saved) == []
    assert families.from_huggingface(saved) == families.from_huggingface(raw)


def test_unknown_fields_are_named_and_nulls_are_not():
    raw = changed(LLAMA31_8B, note="mine", sizes={"a": 1}, nothing=None)
    assert families.unknown_fields(raw) == ["note", "sizes"]


@pytest.mark.parametrize("raw", PUBLISHED, ids=lambda raw: raw["model_type"])
def test_head_is_untied_where_the_file_does_not_say(raw):
    raw = changed(raw, tie_word_embeddings="absent")
    assert not families.from_huggingface(raw).tied


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
    "factor, head_width, expected",
    [
        (8.0, 128, [0.0376060307, 0.00729266508, 0.000524846022, 3.42810235e-05]),
        (32.0, 64, [0.0376060307, 0.00729266508, 0.000429556705, 8.57025589e-06]),
    ],
)
def test_published_llamas_turn_as_in_transformers(factor, head_width, expected):
    # Printed by LlamaRotaryEmbedding of transformers 5.23 for the 8B of Llama 3.1 and
    # the 1B of 3.2: one frequency in eight, from what is kept to what is slowed.
    kind = LayerKind(5e5, llama3=Llama3(factor, 8192, 1.0, 4.0))

    found = attention.rope_frequencies(kind, head_width)

    step = head_width // 16
    np.testing.assert_allclose(found[::step][2:6], expected, rtol=1e-6)


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
        (OLMO3_7B, {"layer_types": "full_attention"}, "'full_attention' is no list"),
        # Types: numbers as text, and what is neither true nor false.
        (
            LLAMA31_8B,
            {"rms_norm_eps": "1e-5"},
            "rms_norm_eps='1e-5' is no number; write it without quotes",
        ),
        (LLAMA31_8B, {"rms_norm_eps": float("nan")}, "rms_norm_eps=nan is no positive"),
        (LLAMA31_8B, {"rms_norm_eps": "absent"}, "the field 'rms_norm_eps' is missing"),
        (QWEN3_8B, {"rope_theta": "1000000"}, "rope_theta='1000000' is no number; wri"),
        (QWEN3_8B, {"rope_theta": 0}, "rope_theta=0 is no positive number"),
        (QWEN3_8B, {"vocab_size": 151936.0}, "vocab_size=151936.0 is no positive int"),
        (QWEN3_8B, {"vocab_size": "151936"}, "no positive integer; write it without q"),
        (QWEN3_8B, {"tie_word_embeddings": "false"}, "is neither true nor false"),
        (QWEN3_8B, {"rope_scaling": "yarn"}, "rope_scaling='yarn' is no object"),
        (QWEN25_7B, {"max_window_layers": "28"}, "max_window_layers='28' is no integ"),
        # Fields that change what is computed.
        (QWEN3_8B, {"hidden_act": "relu"}, "hidden_act='relu' is not supported, only"),
        (LLAMA31_8B, {"attention_bias": True}, "attention_bias=True"),
        (LLAMA31_8B, {"mlp_bias": True}, "mlp_bias=True is not supported, only False"),
        (LLAMA31_8B, {"attention_dropout": 0.1}, "attention_dropout=0.1"),
        (LLAMA31_8B, {"sliding_window": 4096}, "sliding_window=4096 is not supported"),
        (OLMO2_7B, {"use_sliding_window": True}, "use_sliding_window=True"),
        (
            OLMO2_7B,
            {"layer_types": ["sliding_attention"] * 32},
            "layer_types has 'sliding_attention', but olmo2 has none",
        ),
        (LLAMA31_8B, {"is_causal": False}, "is_causal=False is not supported"),
        (
            QWEN3_8B,
            {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config={'quant_method': 'fp8'} is not supported; take the w",
        ),
        (
            LLAMA31_8B,
            {"quantization_config": {"modules": list(range(1000))}},
            r"quantization_config=.{50,90}\.\.\. is not supported",
        ),
        (OLMO3_7B, {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        (
            LLAMA31_8B,
            {"head_dim": 64, "num_attention_heads": 24},
            "does not divide hid",
        ),
        # Scalings that are not those of the table, or are ambiguous.
        (QWEN3_8B, {"rope_scaling": {"rope_type": "dynamic"}}, "rope_type='dynamic'"),
        (QWEN3_8B, {"rope_scaling": {"rope_type": "longrope"}}, "rope_type='longrope'"),
        (
            QWEN3_8B,
            {"rope_scaling": {"rope_type": "yarn", "type": "linear"}},
            "rope_scaling.rope_type='yarn' but rope_scaling.type='linear'",
        ),
        (
            QWEN3_8B,
            {"rope_scaling": {**YARN, "attn_factor": 0.5}},
            "rope_scaling.attn_factor=0.5 has no meaning for rope_type='yarn'",
        ),
        (
            LLAMA31_8B,
            {"rope_scaling": {**LLAMA3, "attention_factor": 1.1}},
            "rope_scaling.attention_factor=1.1 has no meaning for rope_type='llama3'",
        ),
        (
            QWEN3_8B,
            {"rope_scaling": {**YARN, "factor": "4.0"}},
            "rope_scaling.factor='4.0' is no number; write it without quotes",
        ),
        (QWEN3_8B, {"rope_scaling": {**YARN, "factor": 0.5}}, "factor=0.5 is below 1"),
        (
            QWEN3_8B,
            {"rope_scaling": {**YARN, "mscale": "1"}},
            "mscale='1' is no number",
        ),
        (
            LLAMA31_8B,
            {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}},
            "high_freq_factor=1.0 is not above low_freq_factor=1",
        ),
        (
            LLAMA31_8B,
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rope_type='llama3' needs the field 'rope_scaling.low_freq_factor'",
        ),
        (
            QWEN3_8B,
            {"rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e6}},
            "rope_parameters and rope_scaling differ",
        ),
        (
            QWEN3_8B,
            {"rope_scaling": {**YARN, "rope_theta": 1e4}},
            "rope_scaling.rope_theta=10000.0 but rope_theta=1e.06; remove one",
        ),
        (
            QWEN3_8B,
            {"rope_scaling": YARN, "original_max_position_embeddings": 4096},
            "original_max_position_embeddings=4096 but rope_scaling.orig.* is 32768",
        ),
        (
            QWEN25_7B,
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "rope_parameters.full_attention=.* has no meaning for rope_type='default'",
        ),
        # What transformers 5 reads of Olmo3 otherwise than version 4.
        (
            OLMO3_7B,
            {"rope_parameters": {**YARN, "rope_theta": 5e5}, "rope_scaling": None},
            "rope_parameters.factor is not read by transformers for this model",
        ),
        (
            OLMO3_7B,
            {"rope_parameters": {"full_attention": YARN}, "rope_scaling": None},
            "rope_parameters.sliding_attention is missing",
        ),
        (OLMO3_7B, {"rope_theta": 1e4}, "rope_theta=10000.0 counts for sliding layers"),
        (
            OLMO3_7B,
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            "rope_scaling.type='yarn' is not read by transformers 5; call it rope_type",
        ),
        (
            OLMO3_7B,
            {"rope_scaling": {**YARN, "truncate": False}},
            "rope_scaling.truncate=False is not read by transformers 5",
        ),
        (
            OLMO3_7B,
            {
                "rope_scaling": {"rope_type": "yarn"},
                "original_max_position_embeddings": 8192,
            },
            "original_max_position_embeddings=8192 but rope_scaling.*is 65536",
        ),
    ],
)
def test_unsupported_config_is_refused_by_its_field(raw, changes, message):
    with pytest.raises(ValueError, match=message):
        families.from_huggingface(changed(raw, **changes))


def random_rotary_fields(r, family):
    """Any mixture of the spellings of the rotary fields, most of them harmless."""
    some = lambda **fields: {k: v for k, v in fields.items() if r.random() < 0.7}

    def scaling():
        kind = r.choice(["default", "yarn", "llama3"])
        fields = {
            "default": {},
            "yarn": some(
                beta_fast=16.0,
                beta_slow=None,
                mscale=0.7,
                mscale_all_dim=float(r.choice([0.5, 1.0])),
                attention_factor=r.choice([None, 1.25]),
            ),
            "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        }[str(kind)]
        if kind != "default":
            fields["factor"] = float(r.choice([2.0, 4.0]))
            fields |= some(original_max_position_embeddings=1024)
        if r.random() < 0.5:
            fields["rope_theta"] = 5e5
        return {str(r.choice(["rope_type", "type"])): str(kind)} | fields

    raw = some(rope_theta=5e5)
    if r.random() < 0.7:
        raw["rope_scaling"] = scaling()
    if r.random() < 0.7:
        raw["rope_parameters"] = (
            {"full_attention": scaling(), "sliding_attention": scaling()}
            if family == "olmo3"
            else scaling()
        )
    if r.random() < 0.3:
        raw["original_max_position_embeddings"] = int(r.choice([1024, 4096]))
    return raw


def standardized(config, name):
    """The rotary fields of a type of layer, as transformers computes with them."""
    # Its functions of frequencies call this first.
    config.standardize_rope_params()
    rope = config.rope_parameters
    return rope[name] if name in rope else rope


@pytest.mark.parametrize("raw", PUBLISHED, ids=lambda raw: raw["model_type"])
def test_accepted_rotary_fields_mean_what_they_mean_in_transformers(raw):
    import transformers

    r = np.random.default_rng(0)
    base = changed(raw, rope_theta="absent", rope_scaling="absent")
    accepted = 0
    for _ in range(150):
        fields = random_rotary_fields(r, raw["model_type"])
        given = {**base, **fields, "max_position_embeddings": 4096}
        try:
            kinds = families.from_huggingface(copy.deepcopy(given)).period
        except ValueError:
            continue
        accepted += 1
        config = transformers.AutoConfig.for_model(**copy.deepcopy(given))
        for kind in kinds:
            expected = standardized(config, families.layer_type(kind))
            assert kind.rope_theta == expected["rope_theta"]
            found = kind.yarn or kind.llama3
            name = "yarn" if kind.yarn else "llama3" if kind.llama3 else "default"
            assert name == expected["rope_type"]
            if found:
                original = expected["original_max_position_embeddings"]
                assert found.original_positions == original
                assert found.factor == expected["factor"]

    assert accepted > 20
