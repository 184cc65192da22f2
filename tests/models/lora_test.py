"""Tests of LoRA: the adapters change the policy and not the reference."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.core import types
from ipo_md.models import lora
from ipo_md.sampling import mixture
from ipo_md.sampling import sequences
from tests.models import lora_networks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('family', ['t5', 'decoder'])
def test_policy_is_the_merged_network_and_its_gradient_of_a_and_b(family):
  model = lora_networks.network(family)
  params, frozen = lora_networks.trained(model)

  def value(of):
    weights = jnp.arange(20.0).reshape(2, 2, 5)
    return jax.jit(
      jax.value_and_grad(
        lambda p: jnp.sum(weights * lora_networks.log_probs(model, of(p)))
      )
    )(params)

  with jax.default_matmul_precision('highest'):
    actual = value(lambda p: model.policy(p, frozen))
    expected = value(lambda p: lora_networks.merged(model, p, frozen))
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(
      a, e, rtol=1e-4, atol=2e-5 * np.max(np.abs(e))
    ),
    actual,
    expected,
  )
  assert set(flax.traverse_util.flatten_dict(params)) == set(
    flax.traverse_util.flatten_dict(model.logical_axes)
  )


def test_policy_starts_as_the_reference():
  model = lora_networks.network('decoder', scan=False)
  reference = model.base.init(jax.random.key(0))
  start = model.policy(
    model.init(jax.random.key(1)), types.FrozenParams(reference=reference)
  )
  np.testing.assert_array_equal(
    lora_networks.log_probs(model, start),
    lora_networks.log_probs(model, reference),
  )


def test_reference_does_not_see_the_adapters():
  """The sampler of a mixture scores tokens as each network alone does."""
  model = lora_networks.network('decoder')
  params, frozen = lora_networks.trained(model)
  policy, reference = model.policy(params, frozen), frozen.reference

  @jax.jit
  def draw():
    return mixture.sample(
      model,
      policy,
      reference,
      (
        model.encode(policy, lora_networks.PROMPTS),
        model.encode(reference, lora_networks.PROMPTS),
      ),
      jax.random.key(3),
      mixture_coefs=(0.5,),
      max_new_tokens=5,
      eos_id=1,
    )

  score = jax.jit(sequences.log_probs, static_argnums=0)

  def scores(params, drawn):
    completions = types.Completions(
      prompts=lora_networks.PROMPTS, completions=drawn.tokens
    )
    return score(model.base, params, completions)[0]

  mixed = draw()
  whole = lora_networks.merged(model, params, frozen)
  np.testing.assert_allclose(
    mixed.reference_log_probs, scores(reference, mixed), atol=1e-5
  )
  np.testing.assert_allclose(
    mixed.policy_log_probs, scores(whole, mixed), atol=1e-4
  )
  ratios = mixed.policy_log_probs - mixed.reference_log_probs
  assert np.max(np.abs(ratios)) > 0.1


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'rank': 0}, 'LORA_RANK = 0'),
    ({'targets': ('query', 'quary')}, r"LORA_TARGETS = .*'quary'.*'wi_1'"),
    ({'targets': ('logits_dense',)}, 'LORA_TARGETS'),
  ],
)
def test_what_cannot_be_adapted_is_named(changes, message):
  arguments = {'rank': 2, 'alpha': 2.0, 'targets': ('query',)} | changes
  with pytest.raises(ValueError, match=message):
    lora.Lora(lora_networks.network('t5').base, **arguments)


def test_without_a_reference_there_is_nothing_to_adapt():
  model = lora_networks.network('t5')
  with pytest.raises(ValueError, match='REFERENCE_CHECKPOINT_PATH'):
    model.policy(lora_networks.trained(model)[0], types.FrozenParams())
