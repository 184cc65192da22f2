"""Tests of the counts of FLOPs and bytes against explicit sums."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.judges import learned
from ipo_md.models import decoder_only
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from ipo_md.tpu import flops
from ipo_md.tpu import roofline

DECODER = {
  'vocab_size': 4096,
  'emb_dim': 256,
  'num_heads': 4,
  'num_kv_heads': 4,
  'head_dim': 64,
  'num_layers': 4,
  'mlp_dim': 1024,
  'logits_via_embedding': False,
  'rope_theta': 1e4,
  'norm_epsilon': 1e-5,
  'dropout_rate': 0.0,
}
T5 = {
  'vocab_size': 32,
  'emb_dim': 8,
  'num_heads': 2,
  'head_dim': 3,
  'num_encoder_layers': 3,
  'num_decoder_layers': 2,
  'mlp_dim': 16,
  'mlp_activations': ('gelu', 'linear'),
  'logits_via_embedding': True,
  'dropout_rate': 0.0,
}


def network(module, **config) -> model_lib.Model:
  return model_lib.Model(functools.partial(module, **config))


def online(model: model_lib.Model, coefs: tuple[float, ...]) -> roofline.Run:
  """Makes a run with 8 prompts and completions of 64 tokens.

  The judge is the same model.
  """
  return roofline.Run(
    model=model,
    judge_model=model,
    judge=learned.reward_model,
    batch=types.Tokens(
      ids=jax.ShapeDtypeStruct((8, 64), jnp.int32),
      mask=jax.ShapeDtypeStruct((8, 64), bool),
    ),
    state_bytes=0,
    mesh=sharding.make_mesh((1, 8, 1)),
    mixture_coefs=coefs,
    max_new_tokens=64,
    reads_reference=not all(coefs),
    int8_sampling=False,
  )


def test_an_online_step_by_hand():
  """Policy, reference and reward model are decoders of the same size."""
  model = network(decoder_only.DecoderOnly, reward_head=True, **DECODER)
  work = roofline.phases(online(model, (0.0, 0.0)))
  layers = 4 * (4 * 256 * 256 + 3 * 256 * 1024 + 2 * 256)
  head = 256 * 4096
  triangle = 64 * 65 // 2
  read = 8 * (2 * 64 * layers + 4 * 1024 * triangle)
  columns = 64 * 64 + triangle
  write = 16 * (2 * 64 * (layers + head) + 4 * 1024 * columns)
  assert work['encode'].flops == 2 * read
  assert work['decode'].flops == write
  assert work['log_probs'].flops == 2 * write
  assert work['backward'].flops == 2 * (read + write)
  # The judge reads one more input, the start, and computes no logits.
  judged = 16 * (2 * 65 * layers + 4 * 1024 * (65 * 64 + 65 * 66 // 2))
  assert work['judge'].flops == read + judged
  total = sum(phase.flops for phase in work.values())
  assert total == pytest.approx(86.5e9, rel=0.01)


def test_a_mixture_decodes_with_two_models():
  model = network(decoder_only.DecoderOnly, reward_head=True, **DECODER)
  alone = roofline.phases(online(model, (0.0, 0.0)))
  both = roofline.phases(online(model, (0.5, 0.5)))
  one = roofline.phases(online(model, (0.0, 0.5)))
  assert both['decode'].flops == 2 * alone['decode'].flops
  assert both['decode'].bytes == 2 * alone['decode'].bytes
  assert both['log_probs'].flops == alone['log_probs'].flops / 2
  assert one['decode'].flops == 1.5 * alone['decode'].flops


def test_int8_sampling_reads_a_byte_a_weight():
  model = network(decoder_only.DecoderOnly, reward_head=True, **DECODER)
  whole = online(model, (0.5, 0.5))
  rounded = dataclasses.replace(whole, int8_sampling=True)
  sizes = flops.network(model)
  weights = sizes.stored_weights + sizes.head_weights
  saved = 2 * 64 * weights * (4 - 1)  # two models, 64 tokens, float32
  whole, rounded = (roofline.phases(run)['decode'] for run in (whole, rounded))
  assert rounded.bytes == whole.bytes - saved
  assert rounded.flops == whole.flops


def test_sampling_reads_weights_context_and_cache():
  sizes = flops.network(network(decoder_only.DecoderOnly, **DECODER))
  context, cache = 2 * 2 * 7 * 1024, 2 * 4 * 5 * 1024
  weights = sizes.stored_weights + 256 * 4096
  for width in (1, 2):
    read = sizes.token_bytes(
      prompts=2, rows=4, length=9, prompt=7, item=2, weight_item=width
    )
    assert read == width * weights + 2 * (context + cache)


def test_t5_reads_a_prompt_in_encoder_and_cross_attention():
  sizes = flops.network(network(t5.T5, **T5))
  attention, mlp = 4 * 8 * 6, 3 * 8 * 16
  keys_values = 2 * 2 * 8 * 6
  assert sizes.prompt_weights == 3 * (attention + mlp + 16) + keys_values
  assert sizes.completion_weights == 2 * (1.5 * attention + mlp + 24)
  assert sizes.head_weights == 32 * 8
  assert sizes.encode(5, 7) == 5 * (2 * 7 * sizes.prompt_weights + 4 * 18 * 49)


def test_a_mixture_of_experts_stores_more_than_it_multiplies():
  sizes = flops.network(
    network(decoder_only.DecoderOnly, num_experts=8, **DECODER)
  )
  experts = 4 * 8 * 3 * 256 * 1024
  assert sizes.stored_weights - sizes.completion_weights == experts * 6 // 8
