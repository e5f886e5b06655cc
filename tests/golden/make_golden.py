"""Tiny random checkpoints of every family, and what transformers computes with them.

  python tests/golden/make_golden.py [FOLDER ...]

Needs torch 2.13.0 and transformers 5.23.0. Each folder gets a float32 checkpoint and
expected.npz: token ids, logits, last hidden states, the gradient of the mean
cross-entropy of the next tokens, greedy continuations, and sampled ones with the
distributions that they were drawn from.
"""

import copy
import json
import pathlib
import sys

import numpy as np
import torch
import transformers

PROMPT = 8
CONTINUATION = 64
SAMPLING = {"temperature": 0.7, "top_k": 20, "top_p": 0.8}
_SIZES = dict(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
    dtype="float32",
)
_ROPE = {"rope_type": "default", "rope_theta": 50_000.0}
# With a theta of 500 the first of four frequencies stays, the second is half slowed and
# the others wholly; with one of 500,000 the second is slowed wholly too.
_YARN = {
    "rope_type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
}
# Of eight frequencies of theta 500, the first stays, two are slowed in part and the
# others wholly; of four of theta 100, the first stays and one is slowed in part.
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def qwen3(tied: bool) -> transformers.PreTrainedConfig:
    """Grouped queries, heads wider than width / heads."""
    return transformers.Qwen3Config(
        **_SIZES,
        num_hidden_layers=3,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=tied,
        rope_parameters=_ROPE,
    )


def qwen2(tied: bool, kv_heads: int, sliding: bool) -> transformers.PreTrainedConfig:
    """Biases; the first layers read everything, the others a window if `sliding`."""
    return transformers.Qwen2Config(
        **_SIZES,
        num_hidden_layers=3,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        rope_parameters=_ROPE,
        use_sliding_window=sliding,
        sliding_window=6,
        max_window_layers=1,
    )


def olmo3(kv_heads: int, theta: float) -> transformers.PreTrainedConfig:
    """Three sliding layers of four, and YaRN on the fourth only."""
    return transformers.Olmo3Config(
        **_SIZES,
        num_hidden_layers=8,
        num_key_value_heads=kv_heads,
        sliding_window=6,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": theta},
            "full_attention": {**_YARN, "rope_theta": theta},
        },
    )


def llama(tied: bool, **fields) -> transformers.PreTrainedConfig:
    """Llama 3.1's rotary scaling: one frequency stays, others are slowed in part."""
    return transformers.LlamaConfig(
        **_SIZES, num_hidden_layers=3, tie_word_embeddings=tied, **fields
    )


def olmo2(tied: bool, kv_heads: int) -> transformers.PreTrainedConfig:
    """Norms as Olmo3's, without its windows."""
    return transformers.Olmo2Config(
        **_SIZES,
        num_hidden_layers=3,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        rope_parameters=_ROPE,
    )


# Folder -> (config, seed, whether config.json gets the spelling of transformers 4).
# No seed makes a near tie: see smallest_margin.
MODELS = {
    "qwen3_tied": (qwen3(tied=True), 3, False),
    "qwen3_untied": (qwen3(tied=False), 1, True),
    "qwen2_tied": (qwen2(tied=True, kv_heads=2, sliding=False), 1, False),
    "qwen2_sliding": (qwen2(tied=False, kv_heads=4, sliding=True), 2, True),
    "olmo3_grouped": (olmo3(kv_heads=2, theta=500.0), 8, False),
    # In the older spelling, transformers 5 takes this theta for the sliding layers
    # whatever the file says; every published Olmo3 has it.
    "olmo3_multihead": (olmo3(kv_heads=4, theta=500_000.0), 4, True),
    "llama_tied": (
        llama(
            tied=True,
            num_key_value_heads=2,
            head_dim=16,
            rope_parameters={**_LLAMA3, "rope_theta": 500.0},
        ),
        4,
        False,
    ),
    "llama_untied": (
        llama(
            tied=False,
            num_key_value_heads=4,
            rope_parameters={**_LLAMA3, "factor": 2.0, "rope_theta": 100.0},
        ),
        3,
        True,
    ),
    "olmo2_tied": (olmo2(tied=True, kv_heads=4), 2, True),
    "olmo2_grouped": (olmo2(tied=False, kv_heads=2), 2, False),
}


def make_model(
    config: transformers.PreTrainedConfig, seed: int
) -> transformers.PreTrainedModel:
    """Random weights large enough that every part shapes the logits."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
    return model


def expected(model: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    """Outputs on fixed tokens, and the greedy continuation of their beginnings."""
    ids_BT = torch.randint(model.config.vocab_size, (3, 24))
    output = model(ids_BT, labels=ids_BT, output_hidden_states=True)
    output.loss.backward()
    with torch.no_grad():
        rounded = copy.deepcopy(model).to(torch.bfloat16)(ids_BT).logits.float()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "ids_BT": ids_BT.numpy().astype(np.int32),
        "logits_BTV": output.logits.detach().numpy(),
        # How far bfloat16 moves the logits of transformers itself.
        "bfloat16_error": (rounded - output.logits).abs().mean().detach().numpy(),
        "hidden_BTD": output.hidden_states[-1].detach().numpy(),
        "loss": output.loss.detach().numpy(),
        **{f"gradient/{n}": p.grad.numpy() for n, p in model.named_parameters()},
        **greedy(model, ids_BT[:, :PROMPT]),
        **sampled(model, ids_BT[:, :PROMPT]),
        "versions": np.array(json.dumps(versions)),
    }


@torch.no_grad()
def greedy(
    model: transformers.PreTrainedModel, ids_BT: torch.Tensor
) -> dict[str, np.ndarray]:
    """The most likely continuation, and how far rounding is from changing it."""
    margins = []
    for _ in range(CONTINUATION):
        best_B2 = model(ids_BT).logits[:, -1].topk(2)
        margins.append(best_B2.values[:, 0] - best_B2.values[:, 1])
        ids_BT = torch.cat([ids_BT, best_B2.indices[:, :1]], dim=1)
    return {
        "greedy_BT": ids_BT.numpy().astype(np.int32),
        "smallest_margin": torch.stack(margins).min().numpy(),
    }


@torch.no_grad()
def sampled(
    model: transformers.PreTrainedModel, ids_BT: torch.Tensor
) -> dict[str, np.ndarray]:
    """A sampled continuation, and what each of its tokens was drawn from."""
    drawn = model.generate(
        ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        do_sample=True,
        max_new_tokens=ids_BT.shape[1],
        output_scores=True,
        return_dict_in_generate=True,
        **SAMPLING,
    )
    logp_BRV = torch.stack(drawn.scores, dim=1).log_softmax(dim=-1)
    return {
        "sampling": np.array(json.dumps(SAMPLING)),
        "sampled_BT": drawn.sequences.numpy().astype(np.int32),
        "sampled_logp_BRV": logp_BRV.numpy(),
    }


def use_older_spelling(folder: pathlib.Path) -> None:
    """Write the rotary fields and the dtype as transformers 4 did."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    rope = rope.get("full_attention", rope)
    config["rope_theta"] = rope["rope_theta"]
    scaled = {k: v for k, v in rope.items() if k != "rope_theta"}
    config["rope_scaling"] = scaled if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] != "olmo3":
        config.pop("layer_types", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Write the folders named on the command line, or all, beside this file."""
    here = pathlib.Path(__file__).parent
    for name in sys.argv[1:] or MODELS:
        config, seed, older = MODELS[name]
        model = make_model(config, seed)
        model.save_pretrained(here / name)
        results = expected(model)
        np.savez_compressed(here / name / "expected.npz", **results)
        print(f"{name}: smallest margin {results['smallest_margin']:.4f}")
        if older:
            use_older_spelling(here / name)


if __name__ == "__main__":
    main()
