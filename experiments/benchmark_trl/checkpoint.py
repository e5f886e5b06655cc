"""The random checkpoint that both sides load, and a tokenizer of words `wN`."""

import json
import pathlib

import jax
import tokenizers
from tokenizers import models, pre_tokenizers

from experiments.benchmark_trl import workload as w
from sdpo_jax.model import decoder, families, huggingface_export


def write(workload: w.Workload, folder: pathlib.Path) -> None:
    """Write a Hugging Face checkpoint of the workload's size, float32."""
    arch = families.Architecture(
        family="qwen3",
        vocab=workload.vocab,
        width=workload.width,
        mlp_width=workload.mlp_width,
        layers=workload.layers,
        heads=workload.heads,
        kv_heads=workload.kv_heads,
        head_width=workload.head_width,
        norm_eps=1e-6,
        **families.SWITCHES["qwen3"],
        tied=True,
        max_positions=512,
        period=(families.LayerKind(rope_theta=10_000.0),),
    )
    params = decoder.init(arch, jax.random.key(w.SEED))
    huggingface_export.save(folder, arch, params, source=None, dtype="float32")
    _write_tokenizer(workload, folder)


def _write_tokenizer(workload: w.Workload, folder: pathlib.Path) -> None:
    # The model has no logit for the stop token: both sides look for it as ever, and
    # no response ends before its last token.
    words = [w.PAD, *(f"w{n}" for n in range(1, workload.vocab)), w.STOP]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=w.PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([w.PAD, w.STOP])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": w.STOP,
        "pad_token": w.PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": w.CHAT_TEMPLATE,
    }
    stop, pad = vocabulary[w.STOP], vocabulary[w.PAD]
    generation = {"eos_token_id": stop, "pad_token_id": pad}
    files = {"tokenizer_config.json": config, "generation_config.json": generation}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
