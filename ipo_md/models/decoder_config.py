"""The configuration of a decoder-only network."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderOnlyConfig:
  """Sizes and options of a decoder-only network."""

  vocab_size: int  # V
  emb_dim: int  # E
  num_heads: int  # H, heads of queries
  num_kv_heads: int  # G, heads of keys and values, each shared by H / G queries
  head_dim: int  # D
  num_layers: int  # L
  mlp_dim: int  # width of the feed-forward layer, or of one expert
  logits_via_embedding: bool  # whether the embedding is also the head
  rope_theta: float
  norm_epsilon: float
  dropout_rate: float
  mlp_activations: tuple[str, ...] = ('silu', 'linear')
  # Llama 3's scaling of the rotary frequencies; a factor of 1 disables it.
  rope_factor: float = 1.0
  rope_low_frequency_factor: float = 1.0
  rope_high_frequency_factor: float = 4.0
  rope_original_length: int = 8192
  sliding_window: int | None = None  # tokens that a query sees, with itself
  num_experts: int = 1
  num_experts_per_token: int = 2
  router_loss_weight: float = 0.0
  dtype: str = 'float32'  # type of the activations
  scan: bool = True  # lax.scan over the layers, or a Python loop
  remat_policy: str = 'none'  # 'none', 'minimal' or 'full'
  reward_head: int = 0  # number of outputs of the reward head

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
