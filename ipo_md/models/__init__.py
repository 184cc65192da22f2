"""Networks: encode a prompt once, decode any number of completions.

model = models.Model(functools.partial(models.T5, vocab_size=32128, ...))
params = model.init(jax.random.key(0))
context = model.encode(params, prompts)
hidden, _, _ = model.decode(params, inputs, context)
logits = model.logits(params, hidden)
"""

from ipo_md.models.decoder_config import DecoderOnlyConfig
from ipo_md.models.decoder_only import DecoderOnly
from ipo_md.models.kv_cache import widen as widen_caches
from ipo_md.models.lora import RANK_AXIS as LORA_RANK_AXIS
from ipo_md.models.lora import Lora
from ipo_md.models.model import Model
from ipo_md.models.t5 import T5
from ipo_md.models.t5_config import T5Config

__all__ = [
  'LORA_RANK_AXIS',
  'T5',
  'DecoderOnly',
  'DecoderOnlyConfig',
  'Lora',
  'Model',
  'T5Config',
  'widen_caches',
]
