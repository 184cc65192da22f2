"""Networks behind one seam: encode once, decode K completions."""

from ipo_md.models.decoder_config import DecoderOnlyConfig
from ipo_md.models.decoder_only import DecoderOnly
from ipo_md.models.kv_cache import in_strips
from ipo_md.models.layers import Dense
from ipo_md.models.layers import project
from ipo_md.models.lora import Lora
from ipo_md.models.model import Model
from ipo_md.models.sampling_weights import of_array
from ipo_md.models.t5 import T5
from ipo_md.models.t5 import T5Config

__all__ = [
  'DecoderOnly',
  'DecoderOnlyConfig',
  'Dense',
  'Lora',
  'Model',
  'T5',
  'T5Config',
  'in_strips',
  'of_array',
  'project',
]
