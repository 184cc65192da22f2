"""Checks tables of logits: their sequences and what the sampler draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.core import types
from ipo_md.games import exact as exact_lib
from ipo_md.games import game as game_lib
from ipo_md.games import tabular
from ipo_md.models import model as model_lib
from ipo_md.sampling import mixture


def test_log_probabilities_of_a_tree():
  logits = np.random.default_rng(0).normal(size=(4, 3))
  probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  got = tabular.sequence_log_probs(logits)
  for first in range(3):
    for second in range(3):
      wanted = probs[0, first] * probs[1 + first, second]
      np.testing.assert_allclose(np.exp(got[3 * first + second]), wanted)


@pytest.mark.parametrize('b', [0.125, 0.5])
def test_the_sampler_mixes_tokens_and_not_sequences(b):
  rng = np.random.default_rng(1)
  policy, reference = 1.5 * rng.normal(size=(2, 4, 3))
  token = game_lib.token_mixture(policy, reference, b)
  whole = exact_lib.mixture(
    game_lib.policy_of(policy), game_lib.policy_of(reference), b
  )
  n = 400_000
  model = model_lib.Model(
    functools.partial(tabular.Tabular, vocab_size=3, depth=2)
  )
  params = [
    {'table': jnp.array(t, jnp.float32)[None]} for t in (policy, reference)
  ]
  prompts = types.Tokens(jnp.zeros((n, 1), jnp.int32), jnp.ones((n, 1), bool))
  sampled = jax.jit(
    lambda rng: mixture.sample(
      model,
      *params,
      tuple(model.encode(p, prompts) for p in params),
      rng,
      mixture_coefs=(b,),
      max_new_tokens=2,
      eos_id=-1,
    )
  )(jax.random.key(0))
  ids = np.array(sampled.tokens.ids[:, 0])
  counts = np.bincount(3 * ids[:, 0] + ids[:, 1], minlength=9)
  error = np.sqrt(token * (1 - token) / n)
  assert (np.abs(counts / n - token) < 4 * error).all()
  assert (np.abs(counts / n - whole) > 4 * error).any()
  assert np.abs(token - whole).sum() / 2 > 0.01  # Their total variation.
