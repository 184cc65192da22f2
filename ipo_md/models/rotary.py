"""Rotary position embeddings, https://arxiv.org/abs/2104.09864."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ipo_md.models import cpu_layouts
from ipo_md.models import decoder_config


def frequencies(
  cfg: decoder_config.DecoderOnlyConfig, *, local: bool = False
) -> np.ndarray:
  """Returns the angles per position, [R / 2], scaled by `rope_scaling`.

    linear    divides all of them by the factor
    dynamic   leaves them alone up to the original length, see `check_length`
    yarn      divides slow ones, with a linear ramp over their numbers
    llama3    divides slow ones, with a linear ramp over their turns

  Frequencies that turn less often than the low factor within the original
  length are slow, and those that turn more often than the high factor keep
  their value. Yarn is https://arxiv.org/abs/2309.00071.

  Args:
    cfg: Configuration of the network. R of D features are rotated.
    local: Whether the layer has the sliding window and so `local_rope_theta`.
  """
  features = cfg.rotary_dim or cfg.head_dim
  local_theta = cfg.local_rope_theta if local else None
  own_theta = local_theta is not None
  theta = cfg.rope_theta if local_theta is None else local_theta
  exponent = np.arange(0, features, 2, dtype=np.float32) / features
  unscaled = 1.0 / theta**exponent
  if own_theta or cfg.rope_factor == 1 or cfg.rope_scaling == 'dynamic':
    return unscaled.astype(np.float32)
  if cfg.rope_scaling == 'linear':
    return (unscaled / cfg.rope_factor).astype(np.float32)
  if cfg.rope_scaling == 'yarn':
    share = 1 - _yarn_ramp(cfg, features)
  else:
    low, high = cfg.rope_low_frequency_factor, cfg.rope_high_frequency_factor
    turns = cfg.rope_original_length * unscaled / (2 * np.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
  scaled = share * unscaled + (1 - share) * unscaled / cfg.rope_factor
  return scaled.astype(np.float32)


def _yarn_ramp(
  cfg: decoder_config.DecoderOnlyConfig, features: int
) -> np.ndarray:
  """Returns how far the frequencies [R / 2] are divided, from 0 to 1."""

  def number(turns):  # of the frequency with these turns
    length = cfg.rope_original_length / (turns * 2 * math.pi)
    return features * math.log(length) / (2 * math.log(cfg.rope_theta))

  first = number(cfg.rope_high_frequency_factor)
  last = number(cfg.rope_low_frequency_factor)
  if cfg.rope_truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, features - 1)
  width = last - first or 0.001
  numbers = np.arange(features // 2, dtype=np.float32)
  return np.clip((numbers - first) / width, 0, 1)


def check_length(cfg: decoder_config.DecoderOnlyConfig, length: int) -> None:
  """Raises a ValueError if sequences are too long for dynamic scaling.

  Beyond the original length its frequencies depend on the length of the
  sequence, and so would all keys at every token.

  Args:
    cfg: Configuration of the network.
    length: Number of positions, of the prompt and of the completion.
  """
  dynamic = cfg.rope_scaling == 'dynamic' and cfg.rope_factor != 1
  if dynamic and length > cfg.rope_original_length:
    raise ValueError(
      f'Prompt and completion have {length} positions, but dynamic scaling of '
      'the rotary frequencies (rope_scaling) is only supported up to '
      f'rope_original_length, {cfg.rope_original_length}: shorten the lengths '
      "of the run (TASK_FEATURE_LENGTHS), or use rope_scaling 'yarn' with a "
      'model that was trained for it.'
    )


def rotation(
  positions: jax.Array,
  length: int,
  frequencies: np.ndarray,
  attention_factor: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Returns the cosines and sines of the angles at some positions.

  Args:
    positions: [..., T] positions below `length`.
    length: Upper limit of the positions.
    frequencies: [R / 2] angles per position.
    attention_factor: Factor of the results, `rope_attention_factor`.

  Returns:
    [..., T, 1, R / 2] cosines and sines.
  """
  if cpu_layouts.enabled():
    cos, sin = cpu_layouts.rotation(positions, length, frequencies)
  else:
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
  if attention_factor == 1:
    return cos, sin
  return cos * attention_factor, sin * attention_factor


def rotate(x: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates pairs of features by the angles of their positions.

  Feature i is paired with feature i + R / 2, as in Llama's published weights.
  Features from R on are left alone.

  Args:
    x: [..., T, H, D] queries or keys.
    cos_sin: Cosines and sines from `rotation`.

  Returns:
    [..., T, H, D] float32.
  """
  cos, sin = cos_sin
  half = cos.shape[-1]
  x = x.astype(jnp.float32)
  first, second = x[..., :half], x[..., half : 2 * half]
  return jnp.concatenate(
    [
      first * cos - second * sin,
      second * cos + first * sin,
      x[..., 2 * half :],
    ],
    axis=-1,
  )
