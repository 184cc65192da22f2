"""Sizes of networks are positive integers."""

import functools

import pytest

from ipo_md.models import decoder_only
from ipo_md.models import model
from ipo_md.models import t5
from tests.models import lora_networks


@pytest.mark.parametrize('value', [0, -1, 1.5, None, '8', True])
@pytest.mark.parametrize(
  ('family', 'name'),
  [
    ('t5', 'emb_dim'),
    ('t5', 'num_decoder_layers'),
    ('decoder', 'head_dim'),
    ('decoder', 'num_kv_heads'),
    ('decoder', 'num_layers'),
  ],
)
def test_a_size_that_is_none_is_named(family, name, value):
  sizes = lora_networks.COMMON | lora_networks.SIZES[family] | {name: value}
  kind = {'t5': t5.T5, 'decoder': decoder_only.DecoderOnly}[family]
  with pytest.raises(ValueError, match=rf'\.{name} = {value!r}: it must be'):
    model.Model(functools.partial(kind, **sizes))
