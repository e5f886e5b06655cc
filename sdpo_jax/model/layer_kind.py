"""What may differ between the layers of one decoder."""

import dataclasses


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
class Llama3:
    """How Llama 3.1 and later stretch rotary angles (arXiv:2407.21783).

    Args:
      factor: how much longer sequences may be.
      original_positions: the trained length, in tokens.
      low_freq_factor: turns within the original length below which a frequency is
        divided by `factor`.
      high_freq_factor: turns above which it is kept.
    """

    factor: float
    original_positions: int
    low_freq_factor: float
    high_freq_factor: float


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ between the layers of one decoder.

    Args:
      rope_theta: base of the rotary angles.
      yarn: how they are stretched; None if they are not, or by `llama3`.
      window: tokens that a token attends to, itself included; None for all before it.
      llama3: how they are stretched; None if they are not, or by `yarn`.
    """

    rope_theta: float
    yarn: Yarn | None = None
    window: int | None = None
    llama3: Llama3 | None = None
