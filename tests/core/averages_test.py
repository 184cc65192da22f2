"""Tests that metrics of parts and batches are those of the whole."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.core import averages

MEAN, SUM = averages.Mean, averages.Sum


def test_a_mean_is_weighted_and_a_perplexity_is_of_the_mean():
  batches = [
    {
      'loss': MEAN(12.0, 4),
      'perplexity': MEAN(12.0, 4, exponential=True),
      'tokens': SUM(4),
      'grad_norm': 1.0,
    },
    {
      'loss': MEAN(1.0, 1),
      'perplexity': MEAN(1.0, 1, exponential=True),
      'tokens': SUM(1),
      'grad_norm': 2.0,
    },
  ]
  assert averages.pooled(batches) == {
    'loss': 13 / 5,
    'perplexity': pytest.approx(math.exp(13 / 5)),
    'tokens': 5,
    'grad_norm': 1.5,
  }
  assert averages.values(batches[0])['perplexity'] == math.exp(3)


@pytest.mark.parametrize('parts', [1, 2, 8])
@pytest.mark.parametrize('masked', [True, False])
def test_parts_of_any_number_are_the_whole(parts, masked):
  rng = np.random.default_rng(0)
  values, where = rng.normal(size=(8, 3)), rng.random((8, 3)) < 0.5
  where[0] = False  # with 8 parts, one of them has no entry
  mean = lambda v, w: averages.mean(v, w if masked else None)
  expected = values[where].mean() if masked else values.mean()
  split = lambda x: x.reshape(parts, 8 // parts, 3)
  found = jax.vmap(mean)(split(values), split(where))
  if not masked:  # as a scan stacks it
    found = found.replace(weight=jnp.full(parts, found.weight))
  plain = jnp.arange(parts, dtype=float)
  reduced = averages.over_parts(
    {'a': found, 'plain': plain}, jnp.ones(parts) / parts
  )
  np.testing.assert_allclose(float(reduced['a']), expected, rtol=1e-6)
  np.testing.assert_allclose(reduced['plain'], (parts - 1) / 2)


def test_a_batch_without_an_entry_is_not_a_number_and_weighs_nothing():
  empty = averages.mean(jnp.array([jnp.nan]), jnp.array([False]))
  assert math.isnan(float(empty))
  other = averages.mean(jnp.array([2.0]), jnp.array([True]))
  assert averages.pooled([{'a': empty}, {'a': other}]) == {'a': 2.0}


def test_a_value_that_is_not_finite_stays():
  inf, nan = MEAN(np.inf, 2), MEAN(np.nan, 2)
  assert averages.pooled([{'a': inf}, {'a': MEAN(1.0, 1)}])['a'] == np.inf
  assert math.isnan(averages.pooled([{'a': nan}, {'a': MEAN(1.0, 1)}])['a'])
  assert float(MEAN(1e9, 1, exponential=True)) == np.inf


def test_totals_of_many_batches_are_summed_in_float64():
  batch = {'a': MEAN(np.float32(0.1), np.int32(1))}
  found = averages.pooled([batch] * 100_000)['a']
  np.testing.assert_allclose(found, np.float32(0.1), rtol=1e-12)
