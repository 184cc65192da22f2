"""Small LoRA models, their parameters and their input, for the LoRA tests."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp

from ipo_md.core import types
from ipo_md.models import decoder_only
from ipo_md.models import lora
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from ipo_md.sampling import sequences

TARGETS = ('query', 'key', 'value', 'out', 'wi_0', 'wo')
COMMON = {
  'vocab_size': 32,
  'emb_dim': 16,
  'num_heads': 2,
  'head_dim': 8,
  'mlp_dim': 24,
  'logits_via_embedding': False,
  'dropout_rate': 0.0,
}
SIZES = {
  't5': {
    'num_encoder_layers': 2,
    'num_decoder_layers': 2,
    'mlp_activations': ('gelu', 'linear'),
  },
  'decoder': {
    'num_layers': 2,
    'num_kv_heads': 2,
    'rope_theta': 1e4,
    'norm_epsilon': 1e-5,
  },
}
NETWORKS = {'t5': t5.T5, 'decoder': decoder_only.DecoderOnly}
PROMPTS = types.Tokens(
  ids=jnp.array([[5, 9, 3, 7], [8, 4, 0, 0]]),
  mask=jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool),
)
COMPLETIONS = types.Completions(
  prompts=PROMPTS,
  completions=types.Tokens(
    ids=jax.random.randint(jax.random.key(5), (2, 2, 5), 2, 32),
    mask=jnp.ones((2, 2, 5), bool),
  ),
)


@functools.cache
def network(family: str, scan: bool = True) -> lora.Lora:
  sizes = COMMON | SIZES[family] | {'scan': scan}
  base = model_lib.Model(functools.partial(NETWORKS[family], **sizes))
  return lora.Lora(base, rank=3, alpha=6.0, targets=TARGETS)


def trained(model: lora.Lora) -> tuple[types.Params, types.FrozenParams]:
  """Returns adapters that are not 0, and the reference."""
  fresh = model.init(jax.random.key(1))
  params = jax.tree.map(
    lambda x: 0.3 * jax.random.normal(jax.random.key(2), x.shape), fresh
  )
  reference = model.base.init(jax.random.key(0))
  return params, types.FrozenParams(reference=reference)


def merged(model, params, frozen) -> types.Params:
  """Returns the reference with W + alpha / r A B in place of each kernel W."""
  flat = flax.traverse_util.flatten_dict(frozen.reference, sep='/')
  low = flax.traverse_util.flatten_dict(params, sep='/')
  for path in {p[:-2] for p in low}:
    flat[path] += model.alpha / model.rank * low[f'{path}/a'] @ low[f'{path}/b']
  return flax.traverse_util.unflatten_dict(flat, sep='/')


@functools.partial(jax.jit, static_argnums=0)
def log_probs(model, params):
  return sequences.log_probs(model, params, COMPLETIONS)[0]
