"""One side of a log-ratio: its precision, and a value with a gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.games import tabular
from ipo_md.models import model as model_lib
from ipo_md.sampling import log_ratios
from ipo_md.sampling import sequences
from tests.models import lora_networks

pytestmark = pytest.mark.slow


def network(family: str, dtype: str) -> model_lib.Model:
  sizes = lora_networks.COMMON | lora_networks.SIZES[family]
  return model_lib.Model(
    functools.partial(lora_networks.NETWORKS[family], dtype=dtype, **sizes)
  )


def test_a_value_with_the_gradient_of_another():
  def f(x):
    return jnp.sum(log_ratios.with_value(x**3, jnp.sin(x)) ** 2)

  x = jnp.array([0.5, 2.0])
  value, gradient = jax.jit(jax.value_and_grad(f))(x)
  np.testing.assert_allclose(value, jnp.sum(jnp.sin(x) ** 2), rtol=1e-6)
  np.testing.assert_allclose(gradient, 2 * jnp.sin(x) * 3 * x**2, rtol=1e-6)


@pytest.mark.parametrize('family', lora_networks.NETWORKS)
@pytest.mark.parametrize('per_token', [False, True])
def test_a_bfloat16_network_is_compared_in_float32(family, per_token):
  given = lora_networks.COMPLETIONS
  rounding, exact = network(family, 'bfloat16'), network(family, 'float32')
  params = exact.init(jax.random.key(0))
  expected, rough = (
    sequences.sum_or_mean(
      jax.jit(functools.partial(sequences.log_probs, model))(params, given)[0],
      given.completions.mask,
      per_token=per_token,
    )
    for model in (exact, rounding)
  )
  assert np.abs(rough - expected).max() > 1e-4
  found = log_ratios.log_prob(rounding, params, given, per_token=per_token)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  narrow = log_ratios.log_prob(
    rounding, params, given, per_token=per_token, dtype='bfloat16'
  )
  assert np.abs(narrow - expected).max() > 1e-4


def test_no_gradient_flows_through_it():
  model = network('t5', 'bfloat16')
  params = model.init(jax.random.key(0))

  def total(params):
    given = lora_networks.COMPLETIONS
    return jnp.sum(log_ratios.log_prob(model, params, given))

  jax.tree.map(
    lambda x: np.testing.assert_array_equal(x, 0), jax.grad(total)(params)
  )


def test_products_are_wide_only_where_the_network_rounds():
  """On a TPU, float32 would be multiplied in one pass of bfloat16."""
  given = lora_networks.COMPLETIONS

  def precisions(dtype):
    model = network('decoder', dtype)
    lowered = jax.jit(functools.partial(log_ratios.log_prob, model)).lower(
      jax.eval_shape(model.init, jax.random.key(0)), given
    )
    lines = [x for x in lowered.as_text().splitlines() if 'dot_general' in x]
    assert lines
    return {'HIGH' in x for x in lines}

  assert precisions('bfloat16') == {True}
  assert precisions('float32') == {False}


def test_the_type_of_a_model_is_a_copy_with_the_same_parameters():
  model = network('t5', 'bfloat16')
  exact = model.in_dtype('float32')
  assert model.config.dtype == 'bfloat16'
  assert exact.config.dtype == 'float32'
  assert exact.in_dtype('float32') is exact
  assert exact.abstract_params == model.abstract_params
  assert exact.logical_axes == model.logical_axes
  table = model_lib.Model(
    functools.partial(tabular.Tabular, vocab_size=3, depth=2)
  )
  assert table.in_dtype('float32') is table
