"""The rotary fields of a config.json.

They have two spellings: `rope_parameters` of transformers 5, which for Olmo3 holds an
object per type of layer, and `rope_theta` with `rope_scaling` of version 4. A file that
the two versions would read differently is refused, and so is a field of a scaling that
transformers would ignore.
"""

import math
from collections.abc import Sequence

from sdpo_jax.model.config_fields import Fields
from sdpo_jax.model.layer_kind import LayerKind, Llama3, Yarn

# Layer types as config.json spells them.
FULL, SLIDING = "full_attention", "sliding_attention"
# transformers 5 gives Olmo3's sliding layers this theta where the file has the older
# spelling, whatever its rope_theta; version 4 gives them the file's.
_SLIDING_THETA = 500_000.0


def kinds(
    config: Fields, types: Sequence[str], *, by_type: bool, default_theta: float | None
) -> dict[str, LayerKind]:
    """The rotary angles of each type of layer, as kinds without a window.

    Args:
      config: the whole config.json.
      types: of the decoder's layers.
      by_type: whether the newer spelling has an object for each type (Olmo3).
      default_theta: what a missing rope_theta means; None if it must be there.
    """
    config.only("partial_rotary_factor", 1.0)
    newer, older = config.object("rope_parameters"), config.object("rope_scaling")
    found = []
    if newer is not None:
        read = _by_type if by_type else _for_all
        found.append(read(config, newer, types, default_theta))
    if older is not None or newer is None:
        read = _older_by_type if by_type else _for_all
        older = older or Fields({}, "rope_scaling.")
        found.append(read(config, older, types, default_theta))
    if found[0] != found[-1]:
        raise ValueError(
            "config.json: rope_parameters and rope_scaling differ, and versions of "
            "transformers disagree about which one counts; remove the outdated one"
        )
    return found[0]


def _for_all(
    config: Fields, rope: Fields, types: Sequence[str], default_theta: float | None
) -> dict[str, LayerKind]:
    """One set of fields for all layers."""
    kind = _kind(config, rope, default_theta)
    return dict.fromkeys(types, kind)


def _by_type(
    config: Fields, rope: Fields, types: Sequence[str], default_theta: float | None
) -> dict[str, LayerKind]:
    """An object for each type of layer."""
    each = {name: rope.object(name) for name in (FULL, SLIDING)}
    # transformers reads it at the level of the layer types, not within one of them.
    truncate = rope.boolean("truncate", True)
    if unknown := rope.unread():
        raise ValueError(
            f"config.json: {min(unknown)} is not read by transformers for this model; "
            f"rope_parameters needs it within {FULL} or {SLIDING}"
        )
    if missing := [name for name in types if each[name] is None]:
        raise ValueError(f"config.json: rope_parameters.{missing[0]} is missing")
    return {n: _kind(config, each[n], default_theta, truncate) for n in types}


def _older_by_type(
    config: Fields, rope: Fields, types: Sequence[str], default_theta: float | None
) -> dict[str, LayerKind]:
    """One theta for all types of layer, and a scaling of full attention only."""
    sliding = _kind(config, Fields({}), default_theta)
    if SLIDING in types and sliding.rope_theta != _SLIDING_THETA:
        raise config.error(
            "rope_theta",
            f"counts for sliding layers in transformers 4, but not in 5, which takes "
            f"{_SLIDING_THETA:.0f}; write rope_parameters, an object for each type",
        )
    # transformers 5 has filled rope_type in before it looks for the older name.
    if rope.get("rope_type") is None and rope.get("type", "default") != "default":
        raise rope.error("type", "is not read by transformers 5; call it rope_type")
    found = {SLIDING: sliding, FULL: _kind(config, rope, default_theta, True)}
    return {name: found[name] for name in types}


def _kind(
    config: Fields,
    rope: Fields,
    default_theta: float | None,
    truncate: bool | None = None,
) -> LayerKind:
    """One kind of layer; `truncate` is that of all types, None without types."""
    rope.only("partial_rotary_factor", 1.0)
    theta = _theta(config, rope, default_theta)
    names = {rope.get("rope_type"), rope.get("type")} - {None}
    if len(names) > 1:
        raise rope.error("rope_type", f"but {rope.name('type')}={rope.get('type')!r}")
    rope_type = min(names, default="default")
    yarn = llama3 = None
    if rope_type == "yarn":
        yarn = _yarn(config, rope, truncate)
    elif rope_type == "llama3":
        llama3 = _llama3(config, rope, by_type=truncate is not None)
    elif rope_type != "default":
        raise ValueError(
            f"config.json: {rope.name('rope_type')}={rope_type!r} is not supported; "
            "supported: default, yarn, llama3"
        )
    if unknown := rope.unread():
        name = min(unknown)
        raise ValueError(
            f"config.json: {name}={unknown[name]!r} has no meaning for rope_type="
            f"{rope_type!r} in transformers; remove the field"
        )
    return LayerKind(theta, yarn, llama3=llama3)


def _theta(config: Fields, rope: Fields, default: float | None) -> float:
    given = [
        fields.number("rope_theta")
        for fields in (rope, config)
        if fields.get("rope_theta") is not None
    ]
    if not given and default is None:
        raise ValueError("config.json: neither rope_parameters nor rope_theta is set")
    if len(set(given)) > 1:
        raise rope.error("rope_theta", f"but rope_theta={given[1]:g}; remove one")
    return given[0] if given else default


def _original_positions(config: Fields, rope: Fields, by_type: bool) -> int:
    """The trained length; in transformers it defaults to the longest one."""
    name = "original_max_position_embeddings"
    positions = config.positive("max_position_embeddings")
    outer = config.positive(name, positions)
    # Only a scaling of all layers together takes the outer field.
    inner = rope.positive(name, positions if by_type else outer)
    if config.get(name) is not None and inner != outer:
        raise config.error(
            name, f"but {rope.name(name)} is {inner}; write the right one into both"
        )
    return inner


def _factor(rope: Fields, default: float | None = None) -> float:
    factor = rope.number("factor", default)
    if factor < 1:
        raise rope.error("factor", "is below 1")
    return factor


def _yarn(config: Fields, rope: Fields, truncate: bool | None) -> Yarn:
    by_type = truncate is not None
    original = _original_positions(config, rope, by_type)
    # These defaults are those of transformers' YaRN.
    positions = config.positive("max_position_embeddings")
    factor = _factor(rope, positions / original)
    magnitude = lambda scale: 0.1 * scale * math.log(factor) + 1
    names = ("mscale", "mscale_all_dim")
    scales = [rope.get(name) and rope.number(name) for name in names]
    # As in transformers, one without the other means nothing.
    default = magnitude(scales[0]) / magnitude(scales[1]) if all(scales) else None
    own_truncate = rope.boolean("truncate", True if truncate is None else truncate)
    if by_type and own_truncate != truncate:
        raise rope.error(
            "truncate",
            "is not read by transformers 5 in an object for one type of layer; write "
            "it into rope_parameters beside those objects",
        )
    return Yarn(
        factor=factor,
        original_positions=original,
        attention_factor=rope.number("attention_factor", default or magnitude(1)),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=own_truncate,
    )


def _llama3(config: Fields, rope: Fields, by_type: bool) -> Llama3:
    for name in ("factor", "low_freq_factor", "high_freq_factor"):
        if rope.get(name) is None:
            raise ValueError(
                f"config.json: rope_type='llama3' needs the field {rope.name(name)!r}"
            )
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.error("high_freq_factor", f"is not above low_freq_factor={low:g}")
    return Llama3(
        factor=_factor(rope),
        original_positions=_original_positions(config, rope, by_type),
        low_freq_factor=low,
        high_freq_factor=high,
    )
