"""Names and layouts of a checkpoint's tensors: one table, read in both directions.

A row of the table holds our parameter's path, the name of the checkpoint's tensor, and
that tensor's axes in the letters of our name: `query_DHE` is stored as "HE D", a matrix
whose rows run over heads and head width. Our layers are stacked over periods; `{}`
in a tensor name is the layer's number.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """One parameter: our path, the checkpoint's name, the stored axes."""

    path: str
    tensor: str
    axes: str


EMBED = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_LAYER = "model.layers.{}."
_ATTENTION = _LAYER + "self_attn."

_SHARED = (
    Row("embed/table_VD", EMBED, "V D"),
    Row("layers/attention/query_DHE", _ATTENTION + "q_proj.weight", "HE D"),
    Row("layers/attention/key_DNE", _ATTENTION + "k_proj.weight", "NE D"),
    Row("layers/attention/value_DNE", _ATTENTION + "v_proj.weight", "NE D"),
    Row("layers/attention/out_HED", _ATTENTION + "o_proj.weight", "D HE"),
    Row("layers/mlp/gate_DF", _LAYER + "mlp.gate_proj.weight", "F D"),
    Row("layers/mlp/up_DF", _LAYER + "mlp.up_proj.weight", "F D"),
    Row("layers/mlp/down_FD", _LAYER + "mlp.down_proj.weight", "D F"),
    Row("norm/scale_D", "model.norm.weight", "D"),
    Row("head/kernel_DV", HEAD, "V D"),
)
_PRE_NORM = (
    Row("layers/attention_norm/scale_D", _LAYER + "input_layernorm.weight", "D"),
    Row("layers/mlp_norm/scale_D", _LAYER + "post_attention_layernorm.weight", "D"),
)
# One name is the same in all families and means two norms: post_attention_layernorm is
# on attention's output in Olmo, on the MLP's input in the others.
_POST_NORM = (
    Row(
        "layers/attention_norm/scale_D", _LAYER + "post_attention_layernorm.weight", "D"
    ),
    Row("layers/mlp_norm/scale_D", _LAYER + "post_feedforward_layernorm.weight", "D"),
)
_QKV_BIAS = (
    Row("layers/attention/query_bias_HE", _ATTENTION + "q_proj.bias", "HE"),
    Row("layers/attention/key_bias_NE", _ATTENTION + "k_proj.bias", "NE"),
    Row("layers/attention/value_bias_NE", _ATTENTION + "v_proj.bias", "NE"),
)
_HEAD_NORM = (
    Row("layers/attention/query_norm/scale_D", _ATTENTION + "q_norm.weight", "D"),
    Row("layers/attention/key_norm/scale_D", _ATTENTION + "k_norm.weight", "D"),
)
_WIDTH_NORM = (
    Row("layers/attention/query_norm/scale_HE", _ATTENTION + "q_norm.weight", "HE"),
    Row("layers/attention/key_norm/scale_NE", _ATTENTION + "k_norm.weight", "NE"),
)

TABLES = {
    family: {row.path: row for row in rows}
    for family, rows in {
        "qwen2": _SHARED + _PRE_NORM + _QKV_BIAS,
        "qwen3": _SHARED + _PRE_NORM + _HEAD_NORM,
        "olmo3": _SHARED + _POST_NORM + _WIDTH_NORM,
        "llama": _SHARED + _PRE_NORM,
        "olmo2": _SHARED + _POST_NORM + _WIDTH_NORM,
    }.items()
}
