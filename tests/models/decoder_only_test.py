"""Tests of the consistency of Llama, Mistral and Mixtral.

convert_test reads published checkpoints and compares logits with the reference
values.
"""

import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.core import types
from ipo_md.models import decoder_only
from ipo_md.models import experts as experts_lib
from ipo_md.models import grouped_matmul
from ipo_md.models import model
from ipo_md.models import rotary
from ipo_md.sampling import sequences

pytestmark = pytest.mark.slow

TINY = {
  'vocab_size': 50,
  'emb_dim': 16,
  'num_heads': 4,
  'num_kv_heads': 2,
  'head_dim': 8,
  'num_layers': 2,
  'mlp_dim': 24,
  'logits_via_embedding': False,
  'rope_theta': 1e4,
  'norm_epsilon': 1e-5,
  'dropout_rate': 0.0,
}
FAMILIES = {
  'llama': {'rope_factor': 8.0, 'logits_via_embedding': True},
  'mistral': {'sliding_window': 5},
  'mixtral': {'num_experts': 4},
}


@pytest.fixture(autouse=True, scope='module')
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


def _model(**overrides):
  network = functools.partial(decoder_only.DecoderOnly, **(TINY | overrides))
  return model.Model(network)


@functools.partial(jax.jit, static_argnums=0)
def _hidden(network, params, prompts, inputs):
  context = network.encode(params, prompts)
  return network.decode(params, inputs, context)[0]


def _ids(seed, *shape):
  return jax.random.randint(jax.random.key(seed), shape, 1, 50)


def _close(actual, expected, relative):
  scale = np.max(np.abs(expected))
  np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * scale)


@pytest.mark.parametrize(
  ('family', 'k', 'scan', 'chunk'),
  [
    ('llama', 1, True, 1),
    ('llama', 2, True, 3),
    ('llama', 4, False, 3),
    ('mistral', 1, False, 1),
    ('mistral', 2, True, 3),
    ('mistral', 4, True, 1),
    ('mixtral', 1, False, 1),
    ('mixtral', 2, True, 1),
    ('mixtral', 4, False, 3),
  ],
)
def test_cached_decoding_is_teacher_forcing(family, k, scan, chunk):
  network = _model(scan=scan, **FAMILIES[family])
  params = network.init(jax.random.key(0))
  mask = jnp.arange(9) < jnp.array([[9], [4], [1]])
  prompts = types.Tokens(_ids(1, 3, 9), mask)
  inputs = _ids(2, 3, k, 6)
  expected = _hidden(network, params, prompts, inputs)
  context = jax.jit(network.encode)(params, prompts)
  cache = network.init_cache(context, k, 8)  # longer than needed
  step = jax.jit(network.decode)
  parts = []
  for index in range(0, 6, chunk):
    part, cache, _ = step(
      params, inputs[:, :, index : index + chunk], context, cache, index
    )
    parts.append(part)
  _close(jnp.concatenate(parts, axis=2), expected, 1e-5)


@pytest.mark.parametrize('family', FAMILIES)
def test_prompt_and_completion_are_one_sequence(family):
  """Neither the end of the prompt nor its padding changes the result."""
  network = _model(**FAMILIES[family])
  params = network.init(jax.random.key(0))
  ids = _ids(1, 2, 12)
  whole = types.Tokens(ids, jnp.arange(12) < jnp.ones((2, 1)))
  expected = _hidden(network, params, whole, ids[:, None])
  for length, padding in ((4, 0), (8, 5)):
    prompts = types.Tokens(
      jnp.pad(ids[:, :length], ((0, 0), (0, padding))),
      jnp.broadcast_to(
        jnp.arange(length + padding) < length, (2, length + padding)
      ),
    )
    inputs = ids[:, None, length - 1 :]
    actual = _hidden(network, params, prompts, inputs)
    _close(actual, expected[:, :, length - 1 :], 1e-5)


def test_rotations_come_from_a_constant_table():
  """XLA would compute cosines again for every head of every layer."""
  network = _model()
  params = network.init(jax.random.key(0))
  prompts = types.Tokens(_ids(1, 2, 9), jnp.ones((2, 9), bool))
  found = jax.make_jaxpr(
    lambda: _hidden(network, params, prompts, prompts.ids[:, None])
  )()
  assert 'cos' not in str(found)


def test_sliding_window_ends_where_it_should():
  network = _model(num_layers=1, sliding_window=4)
  params = network.init(jax.random.key(0))
  ids = _ids(1, 1, 12)

  def last(ids, length):
    prompts = types.Tokens(ids[:, :length], jnp.ones((1, length), bool))
    return _hidden(network, params, prompts, ids[:, None, length - 1 :])[
      0, 0, -1
    ]

  for length in (3, 11):  # the window ends in the completion, in the prompt
    expected = last(ids, length)
    outside = last(ids.at[0, 7].set(0), length)
    inside = last(ids.at[0, 8].set(0), length)
    np.testing.assert_array_equal(outside, expected)
    assert not np.allclose(inside, expected)


def test_rotary_scaling_is_llama_3_s():
  cfg = _model(
    head_dim=128,
    rope_theta=5e5,
    rope_factor=8.0,
    rope_low_frequency_factor=1.0,
    rope_high_frequency_factor=4.0,
    rope_original_length=8192,
  ).config
  expected = []
  for i in range(64):
    frequency = 5e5 ** (-2 * i / 128)
    wave = 2 * math.pi / frequency
    if wave > 8192:
      frequency /= 8
    elif wave > 8192 / 4:
      smooth = (8192 / wave - 1) / 3
      frequency = (1 - smooth) * frequency / 8 + smooth * frequency
    expected.append(frequency)
  np.testing.assert_allclose(rotary.frequencies(cfg), expected, rtol=1e-6)


@pytest.mark.parametrize('branch', ['cpu', 'default'])
@pytest.mark.parametrize('sizes', [(5, 0, 9, 3), (0, 0, 0, 17), (17, 0, 0, 0)])
def test_grouped_product_and_gradients(sizes, branch, monkeypatch):
  """Both the branch for CPUs and the one for accelerators run here."""
  monkeypatch.setattr(
    jax.lax,
    'platform_dependent',
    lambda *args, **branches: branches[branch](*args),
  )
  x = jax.random.normal(jax.random.key(0), (17, 6))
  kernels = jax.random.normal(jax.random.key(1), (4, 6, 5))
  weights = jax.random.normal(jax.random.key(2), (17, 5))
  groups = np.repeat(np.arange(4), sizes)

  def value(x, kernels):
    return jnp.sum(
      grouped_matmul.matmul(x, kernels, jnp.array(sizes)) * weights
    )

  def expected(x, kernels):
    return jnp.einsum('mi,mio,mo->', x, kernels[groups], weights)

  actual = jax.value_and_grad(value, (0, 1))(x, kernels)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
    actual,
    jax.value_and_grad(expected, (0, 1))(x, kernels),
  )


@pytest.mark.parametrize('experts', [8, 32, 64])
def test_cost_does_not_grow_with_the_number_of_experts(experts):
  """Counts FLOPs of 512 tokens, 2 experts each, at even and skewed spreads."""
  rows = 1024
  block = grouped_matmul._block_rows(rows, experts)
  one = jax.jit(jnp.matmul).lower(jnp.ones((block, 64)), jnp.ones((64, 32)))
  skewed = np.random.default_rng(0).multinomial(
    rows, np.random.default_rng(1).dirichlet(np.ones(experts))
  )
  for sizes in (np.full(experts, rows // experts), skewed):
    blocks, _ = grouped_matmul._blocks(jnp.array(sizes), block)
    flops = blocks * one.cost_analysis()['flops']
    assert 1 <= flops / (2 * rows * 64 * 32) < 2.5


def test_experts_are_a_weighted_sum():
  cfg = _model(num_layers=1, num_experts=4).config
  graphdef, params = nnx.split(experts_lib.Experts(nnx.Rngs(0), cfg))
  params = jax.tree.map(lambda a: a[0], params)
  x = jax.random.normal(jax.random.key(1), (2, 3, 16))
  y, loss = nnx.merge(graphdef, params)(x, 'float32')

  params = nnx.to_pure_dict(params)
  probabilities = jax.nn.softmax(x @ params['router']['kernel'])
  wi_0, wi_1, wo = (
    params['experts'][name]['kernel'] for name in ('wi_0', 'wi_1', 'wo')
  )
  hidden = jax.nn.silu(jnp.einsum('bte,xem->btxm', x, wi_0))
  hidden *= jnp.einsum('bte,xem->btxm', x, wi_1)
  each = jnp.einsum('btxm,xme->btxe', hidden, wo)
  second = jnp.sort(probabilities)[..., -2:-1]
  chosen = probabilities >= second
  weights = jnp.where(chosen, probabilities, 0)
  weights /= weights.sum(-1, keepdims=True)
  _close(y, jnp.einsum('btx,btxe->bte', weights, each), 1e-5)
  share = chosen.mean((0, 1)) * probabilities.mean((0, 1))
  np.testing.assert_allclose(loss, 4 * share.sum(), rtol=1e-5)


def test_router_loss_does_not_count_padding():
  network = _model(num_experts=4, router_loss_weight=0.1)
  params = network.init(jax.random.key(0))
  prompts = types.Tokens(_ids(1, 2, 4), jnp.ones((2, 4), bool))
  tokens = types.Tokens(
    _ids(2, 2, 2, 6), jnp.arange(6) < jnp.array([[[6], [2]], [[1], [3]]])
  )

  def loss(tokens):
    completions = types.Completions(prompts=prompts, completions=tokens)
    return sequences.log_probs(network, params, completions)[1]

  other = tokens.replace(ids=jnp.where(tokens.mask, tokens.ids, 7))
  expected = loss(tokens)
  np.testing.assert_allclose(loss(other), expected, rtol=1e-6)
  everywhere = tokens.replace(mask=jnp.ones((2, 2, 6), bool))
  assert abs(loss(everywhere) - expected) > 1e-3


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'num_heads': 3}, 'num_heads 3 .* num_kv_heads 2'),
    ({'num_experts': 2, 'num_experts_per_token': 3}, 'num_experts_per_token 3'),
    ({'remat_policy': 'some'}, 'remat_policy .some.'),
    ({'head_dim': 7}, 'head_dim 7 is odd'),
  ],
)
def test_errors_name_the_field(overrides, message):
  with pytest.raises(ValueError, match=message):
    network = _model(**overrides)
    jax.eval_shape(
      network.encode,
      network.abstract_params,
      types.Tokens(_ids(1, 1, 3), jnp.ones((1, 3), bool)),
    )


def test_gradients_reach_every_parameter():
  network = _model(num_experts=4, router_loss_weight=0.1, scan=False)
  params = network.init(jax.random.key(0))
  prompts = types.Tokens(_ids(1, 8, 6), jnp.ones((8, 6), bool))

  @jax.jit
  @jax.grad
  def grads(params):
    context = network.encode(params, prompts)
    hidden, _, aux = network.decode(params, _ids(2, 8, 2, 5), context)
    return jnp.mean(jnp.square(network.logits(params, hidden))) + aux

  for path, grad in jax.tree_util.tree_leaves_with_path(grads(params)):
    assert np.all(np.isfinite(grad)), path
    assert np.any(grad != 0), path
