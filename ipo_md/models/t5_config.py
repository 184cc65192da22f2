"""The configuration of a T5 network."""

import dataclasses
from typing import ClassVar

from ipo_md.models import sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """Sizes and options of a T5 network, under T5X's names."""

  vocab_size: int  # V
  emb_dim: int  # E
  num_heads: int  # H
  head_dim: int  # D
  num_encoder_layers: int
  num_decoder_layers: int  # L
  mlp_dim: int
  mlp_activations: tuple[str, ...]  # ('relu',) or ('gelu', 'linear')
  logits_via_embedding: bool  # whether the embedding is also the head
  dropout_rate: float
  dtype: str = 'float32'  # type of the activations
  relpos_num_buckets: int = 32
  relpos_max_distance: int = 128
  scan: bool = True  # lax.scan over the layers, or a Python loop
  remat_policy: str = 'none'  # 'none', 'minimal' or 'full'
  reward_head: int = 0  # number of outputs of the reward head
  norm_offset: ClassVar[float] = 0.0  # that of `DecoderOnlyConfig`

  def __post_init__(self):
    sizes.check(
      self,
      (
        'vocab_size',
        'emb_dim',
        'num_heads',
        'head_dim',
        'num_encoder_layers',
        'num_decoder_layers',
        'mlp_dim',
        'relpos_num_buckets',
        'relpos_max_distance',
      ),
    )
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))
