"""Tiny random Qwen3 checkpoints, and what transformers computes with them.

  python tests/golden/make_golden.py

Needs torch 2.13.0 and transformers 5.23.0. Each folder gets a float32 checkpoint and
expected.npz: token ids, logits, last hidden states, and greedy continuations.
"""

import json
import pathlib

import numpy as np
import torch
import transformers

ROPE_THETA = 50_000.0
PROMPT = 8
CONTINUATION = 64


def make_model(tied: bool, seed: int) -> transformers.Qwen3ForCausalLM:
    """Random weights large enough that attention and norms shape the logits."""
    config = transformers.Qwen3Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = transformers.Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
    return model


@torch.no_grad()
def expected(model: transformers.Qwen3ForCausalLM) -> dict[str, np.ndarray]:
    """Outputs on fixed tokens, and the greedy continuation of their beginnings."""
    ids_BT = torch.randint(model.config.vocab_size, (3, 24))
    output = model(ids_BT, output_hidden_states=True)
    greedy_BT, margins = ids_BT[:, :PROMPT], []
    for _ in range(CONTINUATION):
        best_B2 = model(greedy_BT).logits[:, -1].topk(2)
        margins.append(best_B2.values[:, 0] - best_B2.values[:, 1])
        greedy_BT = torch.cat([greedy_BT, best_B2.indices[:, :1]], dim=1)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "ids_BT": ids_BT.numpy().astype(np.int32),
        "logits_BTV": output.logits.numpy(),
        "hidden_BTD": output.hidden_states[-1].numpy(),
        "greedy_BT": greedy_BT.numpy().astype(np.int32),
        # Between the best two tokens: how far rounding is from changing the text.
        "smallest_margin": torch.stack(margins).min().numpy(),
        "versions": np.array(json.dumps(versions)),
    }


def use_older_spelling(folder: pathlib.Path) -> None:
    """Write rope_theta and torch_dtype, as transformers 4 did."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Write both folders beside this file."""
    here = pathlib.Path(__file__).parent
    for tied, seed in [(True, 3), (False, 1)]:
        folder = here / ("qwen3_tied" if tied else "qwen3_untied")
        model = make_model(tied, seed)
        model.save_pretrained(folder)
        np.savez(folder / "expected.npz", **expected(model))
        if not tied:
            use_older_spelling(folder)


if __name__ == "__main__":
    main()
