"""The shape of a decoder-only network."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderOnlyConfig:
  """A decoder's shape."""

  vocab_size: int
  emb_dim: int  # E
  num_heads: int  # H, of queries
  num_kv_heads: int  # G, of keys and values; H / G queries share one
  head_dim: int  # D
  num_layers: int  # L
  mlp_dim: int  # of one expert, where there are several
  logits_via_embedding: bool  # whether the head is the embedding
  rope_theta: float
  norm_epsilon: float
  dropout_rate: float
  mlp_activations: tuple[str, ...] = ('silu', 'linear')
  # Llama 3's scaling of the rotary frequencies; a factor of 1 is none.
  rope_factor: float = 1.0
  rope_low_frequency_factor: float = 1.0
  rope_high_frequency_factor: float = 4.0
  rope_original_length: int = 8192
  sliding_window: int | None = None  # how many tokens a query sees, its own too
  num_experts: int = 1
  num_experts_per_token: int = 2
  router_loss_weight: float = 0.0
  dtype: str = 'float32'  # of activations
  scan: bool = True  # lax.scan over the layers, or a Python loop
  remat_policy: str = 'none'  # 'none', 'minimal', 'full'
  reward_head: int = 0  # outputs of a head besides the vocabulary's

  def __post_init__(self):
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads {self.num_heads} is not divisible by num_kv_heads '
        f'{self.num_kv_heads}.'
      )
    if 1 < self.num_experts < self.num_experts_per_token:
      raise ValueError(
        f'num_experts_per_token {self.num_experts_per_token} is more than '
        f'num_experts {self.num_experts}.'
      )


def rotary_frequencies(cfg: DecoderOnlyConfig) -> np.ndarray:
  """[D / 2] angles a position, with Llama 3's scaling.

  Waves longer than the original length over the low factor are slowed by
  rope_factor, those shorter than it over the high factor are kept, and between
  the two the frequency is interpolated.
  """
  exponent = np.arange(0, cfg.head_dim, 2, dtype=np.float32) / cfg.head_dim
  frequencies = 1.0 / cfg.rope_theta**exponent
  if cfg.rope_factor == 1:
    return frequencies.astype(np.float32)
  low, high = cfg.rope_low_frequency_factor, cfg.rope_high_frequency_factor
  turns = cfg.rope_original_length * frequencies / (2 * np.pi)
  kept = np.clip((turns - low) / (high - low), 0, 1)
  scaled = kept * frequencies + (1 - kept) * frequencies / cfg.rope_factor
  return scaled.astype(np.float32)
