"""Rotary position embeddings, https://arxiv.org/abs/2104.09864."""

import jax
import jax.numpy as jnp
import numpy as np

from ipo_md.models import cpu_layouts
from ipo_md.models import decoder_config


def frequencies(cfg: decoder_config.DecoderOnlyConfig) -> np.ndarray:
  """Returns the angles per position, [D / 2], with Llama 3's scaling.

  The factor `rope_factor` divides the frequency of waves that are longer than
  `rope_original_length` over the low factor. Waves shorter than that length
  over the high factor keep their frequency. The frequencies between the two
  are interpolated.
  """
  exponent = np.arange(0, cfg.head_dim, 2, dtype=np.float32) / cfg.head_dim
  unscaled = 1.0 / cfg.rope_theta**exponent
  if cfg.rope_factor == 1:
    return unscaled.astype(np.float32)
  low, high = cfg.rope_low_frequency_factor, cfg.rope_high_frequency_factor
  turns = cfg.rope_original_length * unscaled / (2 * np.pi)
  share = np.clip((turns - low) / (high - low), 0, 1)
  scaled = share * unscaled + (1 - share) * unscaled / cfg.rope_factor
  return scaled.astype(np.float32)


def rotation(
  positions: jax.Array, length: int, frequencies: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """Returns the cosines and sines of the angles at some positions.

  Args:
    positions: [..., T] positions below `length`.
    length: Upper limit of the positions.
    frequencies: [D / 2] angles per position.

  Returns:
    [..., T, 1, D / 2] cosines and sines.
  """
  if cpu_layouts.enabled():
    return cpu_layouts.rotation(positions, length, frequencies)
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates pairs of features by the angles of their positions.

  Feature i is paired with feature i + D / 2, as in Llama's published weights.

  Args:
    x: [..., T, H, D] queries or keys.
    cos_sin: Cosines and sines from `rotation`.

  Returns:
    [..., T, H, D] float32.
  """
  cos, sin = cos_sin
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
