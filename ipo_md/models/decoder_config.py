"""The configuration of a decoder-only network.

Families of language models are values of these fields. The defaults are those
of Llama.
"""

import dataclasses

from ipo_md.models import sizes

_CHOICES = {
  'norms': ('before', 'after', 'around'),
  'query_key_norm': ('none', 'head', 'joined'),
  'attention_bias': ('none', 'qkv', 'qkvo'),
  'rope_scaling': ('linear', 'dynamic', 'yarn', 'llama3'),
}


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
  norms: str = 'before'  # 'before', 'after' or 'around' each sublayer
  norm_offset: float = 0.0  # added to the scales of norms; Gemma has 1
  query_key_norm: str = 'none'  # 'none', 'head' or 'joined' (all heads at once)
  attention_bias: str = 'none'  # 'none', 'qkv' or 'qkvo', with the output's
  query_scalar: float | None = None  # scores are over its root; None: head_dim
  attention_soft_cap: float | None = None  # c in c tanh(score / c)
  logits_soft_cap: float | None = None
  scale_embeddings: bool = False  # whether inputs are multiplied by sqrt(E)
  rotary_dim: int | None = None  # rotated features of a head; None: all
  rope_layers: tuple[bool, ...] = (True,)  # pattern of the layers that rotate
  # Scaling of the rotary frequencies: 'linear', 'dynamic', 'yarn' or 'llama3'.
  # A factor of 1 disables it.
  rope_scaling: str = 'llama3'
  rope_factor: float = 1.0
  rope_low_frequency_factor: float = 1.0
  rope_high_frequency_factor: float = 4.0
  rope_original_length: int = 8192
  rope_attention_factor: float = 1.0  # multiplies cosines and sines
  rope_truncate: bool = True  # whether yarn rounds the limits of its ramp
  sliding_window: int | None = None  # tokens that a query sees, with itself
  local_layers: tuple[bool, ...] = (True,)  # pattern of those with the window
  local_rope_theta: float | None = None  # of those, unscaled; None: the same
  num_experts: int = 1
  num_experts_per_token: int = 2
  experts_sum_to_one: bool = True  # whether the chosen weights are rescaled
  router_loss_weight: float = 0.0
  dtype: str = 'float32'  # type of the activations
  scan: bool = True  # lax.scan over the layers, or a Python loop
  remat_policy: str = 'none'  # 'none', 'minimal' or 'full'
  reward_head: int = 0  # number of outputs of the reward head

  def __post_init__(self):
    sizes.check(
      self,
      (
        'vocab_size',
        'emb_dim',
        'num_heads',
        'num_kv_heads',
        'head_dim',
        'num_layers',
        'mlp_dim',
        'num_experts',
      ),
    )
    for name in ('mlp_activations', 'rope_layers', 'local_layers'):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    for name, values in _CHOICES.items():
      if getattr(self, name) not in values:
        raise ValueError(
          f'{name} {getattr(self, name)!r} is not among {list(values)}.'
        )
    for name in ('rope_layers', 'local_layers'):
      if not getattr(self, name):
        raise ValueError(f'{name} is empty: (True,) stands for all layers.')
    if self.rotary_dim is not None and (
      self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim
    ):
      raise ValueError(
        f'rotary_dim {self.rotary_dim} is not an even number up to head_dim '
        f'{self.head_dim}.'
      )
    if any(self.rope_layers) and self.rotary_dim is None and self.head_dim % 2:
      raise ValueError(
        f'head_dim {self.head_dim} is odd, but rotary positions turn pairs.'
      )
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
