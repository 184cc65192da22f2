"""Makes the networks and batches that the flags of a benchmark describe."""

import argparse
import functools

import jax
import jax.numpy as jnp

from ipo_md.core import types
from ipo_md.models import decoder_only
from ipo_md.models import model as model_lib
from ipo_md.models import t5

# Defaults of the flags for shapes: T5 1.1 small, and a decoder with 6 million
# parameters.
SHAPES = {
  't5': {
    'emb_dim': 512,
    'heads': 6,
    'head_dim': 64,
    'layers': 8,
    'mlp_dim': 1024,
    'vocab': 32_128,
    'prompt': 128,
  },
  'decoder': {
    'emb_dim': 256,
    'heads': 4,
    'head_dim': 64,
    'layers': 4,
    'mlp_dim': 1024,
    'vocab': 4096,
    'prompt': 64,
  },
}


def add_flags(flags: argparse.ArgumentParser, family: str) -> None:
  """Adds the flags for shape and batch; `family` is the default family."""
  flags.add_argument('--family', choices=list(SHAPES), default=family)
  for name in SHAPES[family]:
    flags.add_argument(f'--{name}', type=int)
  flags.add_argument('--batch', type=int, default=8, help='prompts, B')
  flags.add_argument('--k', type=int, default=2, help='completions per prompt')
  flags.add_argument(
    '--tokens', type=int, default=64, help='tokens per completion, T'
  )
  flags.add_argument('--dtype', default='float32', help='type of activations')
  flags.add_argument('--scan', action='store_true', help='scan over layers')


def fill(args: argparse.Namespace) -> argparse.Namespace:
  """Fills in the shapes of the family that were not given."""
  for name, value in SHAPES[args.family].items():
    if getattr(args, name) is None:
      setattr(args, name, value)
  return args


def network(args: argparse.Namespace, *, reward_head: bool = False):
  """Makes the `models.Model` that the flags describe."""
  common = {
    'vocab_size': args.vocab,
    'emb_dim': args.emb_dim,
    'num_heads': args.heads,
    'head_dim': args.head_dim,
    'mlp_dim': args.mlp_dim,
    'logits_via_embedding': False,
    'dropout_rate': 0.0,
    'dtype': args.dtype,
    'scan': args.scan,
    'reward_head': reward_head,
  }
  if args.family == 't5':
    module = functools.partial(
      t5.T5,
      num_encoder_layers=args.layers,
      num_decoder_layers=args.layers,
      mlp_activations=('gelu', 'linear'),
      **common,
    )
  else:
    module = functools.partial(
      decoder_only.DecoderOnly,
      num_kv_heads=args.heads,
      num_layers=args.layers,
      rope_theta=1e4,
      norm_epsilon=1e-5,
      **common,
    )
  return model_lib.Model(module)


def init(model: model_lib.Model, seed: int) -> types.Params:
  """Makes random parameters."""
  return jax.jit(model.init)(jax.random.key(seed))


def prompts(args: argparse.Namespace) -> types.Tokens:
  """Makes prompts of [B, P] random tokens without padding."""
  shape = (args.batch, args.prompt)
  ids = jax.random.randint(jax.random.key(1), shape, 2, args.vocab, jnp.int32)
  return types.Tokens(ids=ids, mask=jnp.ones(shape, bool))


def completions(args: argparse.Namespace) -> types.Completions:
  """Makes K completions of full length for each prompt."""
  shape = (args.batch, args.k, args.tokens)
  ids = jax.random.randint(jax.random.key(2), shape, 2, args.vocab, jnp.int32)
  return types.Completions(
    prompts=prompts(args),
    completions=types.Tokens(ids=ids, mask=jnp.ones(shape, bool)),
  )
