"""Makes llama_3, t5_v1_0, t5_v1_1_shared and mixtral/router_loss.npz.

In an environment with torch 2.13 (CPU) and transformers 5.23:

  python tests/testdata/hf/make.py
"""

import pathlib

import numpy as np
import torch
import transformers
from transformers.models.mixtral import modeling_mixtral

HERE = pathlib.Path(__file__).parent
IDS = torch.randint(3, 61, (3, 13), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(13) < torch.tensor([[13], [7], [4]])).long()


def save(name, network, config, *, dtype=torch.float32, shards='5GB'):
  """Random weights, of files in `dtype`, and logits in float32."""
  torch.manual_seed(1)
  path = HERE / name
  network(config).to(dtype).save_pretrained(path, max_shard_size=shards)
  model = network.from_pretrained(path, dtype=torch.float32).eval()
  inputs = {'input_ids': IDS, 'attention_mask': MASK}
  expected = {'ids': IDS.numpy(), 'mask': MASK.numpy().astype(bool)}
  if config.is_encoder_decoder:
    decoder_ids = torch.randint(3, 61, (3, 11))
    decoder_ids[:, 0] = 0
    inputs['decoder_input_ids'] = decoder_ids
    expected['decoder_input_ids'] = decoder_ids.numpy()
  with torch.no_grad():
    expected['logits'] = model(**inputs).logits.numpy()
  np.savez(path / 'expected.npz', **expected)


def router_loss():
  """Each layer's load-balancing loss over the tokens that are no padding."""
  model = transformers.MixtralForCausalLM.from_pretrained(HERE / 'mixtral')
  golden = np.load(HERE / 'mixtral' / 'expected.npz')
  mask = torch.tensor(golden['mask']).long()
  with torch.no_grad():
    out = model.eval()(
      input_ids=torch.tensor(golden['ids']).long(),
      attention_mask=mask,
      output_router_logits=True,
    )
  config = model.config
  losses = [
    modeling_mixtral.load_balancing_loss_func(
      (logits,), config.num_local_experts, config.num_experts_per_tok, mask
    )
    for logits in out.router_logits
  ]
  np.savez(HERE / 'mixtral' / 'router_loss.npz', losses=np.array(losses))


if __name__ == '__main__':
  llama = transformers.LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    initializer_range=0.3,
    rope_parameters={
      'rope_type': 'llama3',
      'rope_theta': 100.0,
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 16,
    },
  )
  sizes = {
    'vocab_size': 61,
    'd_model': 32,
    'd_kv': 12,
    'd_ff': 48,
    'num_layers': 2,
    'num_heads': 3,
    'initializer_factor': 2.0,
  }
  t5 = transformers.T5ForConditionalGeneration
  save(
    'llama_3',
    transformers.LlamaForCausalLM,
    llama,
    dtype=torch.bfloat16,
    shards='20KB',
  )
  save('t5_v1_0', t5, transformers.T5Config(feed_forward_proj='relu', **sizes))
  # Version 5 ties the head, and writes so, but does not scale what it reads.
  shared = transformers.T5Config(
    feed_forward_proj='gated-gelu', tie_word_embeddings=False, **sizes
  )
  save('t5_v1_1_shared', t5, shared)
  router_loss()
