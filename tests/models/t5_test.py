"""Tests of T5 against values computed with T5X, and of its consistency."""

import functools
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.core import types
from ipo_md.models import model
from ipo_md.models import relative_positions
from ipo_md.models import t5

pytestmark = pytest.mark.slow

TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata' / 't5x'
TINY = {
  'vocab_size': 256,
  'emb_dim': 64,
  'num_heads': 4,
  'head_dim': 16,
  'num_encoder_layers': 2,
  'num_decoder_layers': 2,
  'mlp_dim': 128,
  'mlp_activations': ('gelu', 'linear'),
  'logits_via_embedding': False,
  'dropout_rate': 0.0,
}


@pytest.fixture(autouse=True, scope='module')
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


@pytest.fixture(scope='module')
def golden():
  return dict(np.load(TESTDATA / 't5_1_1_tiny.npz'))


def _model(**overrides):
  return model.Model(functools.partial(t5.T5, **(TINY | overrides)))


def _stack(golden, prefix, abstract):
  """Arranges T5X's arrays `prefix`/... in our tree, with stacked layers."""

  def leaf(path, array):
    name = prefix + '/'.join(p.key for p in path)
    if name in golden:
      return jnp.asarray(golden[name])
    return jnp.stack(
      [
        golden[name.replace('/layers/', f'/layers_{i}/')]
        for i in range(array.shape[0])
      ]
    )

  return jax.tree_util.tree_map_with_path(leaf, abstract)


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(network, params, prompts, inputs):
  context = network.encode(params, prompts)
  hidden, _, _ = network.decode(params, inputs, context)
  return jax.nn.log_softmax(network.logits(params, hidden))


def _tokens(ids):
  return types.Tokens(jnp.asarray(ids), jnp.asarray(ids) > 0)


def _close(actual, expected, relative=2e-5):
  scale = np.max(np.abs(expected))
  np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * scale)


@pytest.mark.parametrize(
  'overrides',
  [
    {'scan': True},
    {'scan': False},
    {'scan': True, 'remat_policy': 'full'},
    {'scan': False, 'remat_policy': 'minimal'},
  ],
)
def test_logits_loss_and_gradients_are_t5x_s(golden, overrides):
  network = _model(**overrides)
  params = _stack(golden, 'params/', network.abstract_params)
  batch = {k[6:]: v for k, v in golden.items() if k.startswith('batch/')}
  weights = batch['decoder_loss_weights']
  targets = batch['decoder_target_tokens']

  def loss(params):
    context = network.encode(params, _tokens(batch['encoder_input_tokens']))
    inputs = jnp.asarray(batch['decoder_input_tokens'])[:, None]
    hidden, _, _ = network.decode(params, inputs, context)
    logits = network.logits(params, hidden)[:, 0]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    at_targets = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    log_probs = at_targets - log_z
    z_loss = 1e-4 * jnp.square(log_z)
    return jnp.sum((z_loss - log_probs) * weights), (logits, log_probs)

  (value, (logits, log_probs)), grads = jax.jit(
    jax.value_and_grad(loss, has_aux=True)
  )(params)
  real = weights > 0
  _close(logits[real], golden['logits'][real])
  _close(log_probs[real], golden['target_logprobs'][real])
  _close(value, golden['loss'])
  jax.tree.map(_close, grads, _stack(golden, 'grads/', grads))


@pytest.mark.parametrize(
  ('scan', 'tag'), [(True, 'greedy_t0'), (False, 'greedy_topk1_norescale')]
)
def test_greedy_decode_is_t5x_s_token_for_token(golden, scan, tag):
  decodes = np.load(TESTDATA / 't5_1_1_tiny_decode.npz')
  network = _model(scan=scan)
  params = _stack(golden, 'params/', network.abstract_params)
  prompts = _tokens(decodes['encoder_input_tokens'])
  context = jax.jit(network.encode)(params, prompts)
  expected = decodes[f'{tag}/tokens'][:, 0]

  @jax.jit
  def step(token, cache, index):
    hidden, cache, _ = network.decode(params, token, context, cache, index)
    return jnp.argmax(network.logits(params, hidden), -1), cache

  token = context.start[:, None, None]
  cache = network.init_cache(context, 1, expected.shape[1])
  tokens = []
  for index in range(expected.shape[1]):
    token, cache = step(token, cache, index)
    tokens.append(token[:, 0, 0])
  tokens = np.stack(tokens, axis=1)
  after_end = np.cumsum(tokens == 1, axis=1) - (tokens == 1) > 0
  np.testing.assert_array_equal(np.where(after_end, 0, tokens), expected)


@pytest.mark.parametrize(
  ('k', 'scan', 'chunk'), [(1, True, 3), (2, False, 1), (4, True, 1)]
)
def test_cached_decoding_is_teacher_forcing(k, scan, chunk):
  network = _model(scan=scan, logits_via_embedding=True)
  params = network.init(jax.random.key(0))
  ids = jax.random.randint(jax.random.key(1), (3, 9), 2, 256)
  mask = jnp.arange(9) < jnp.array([[9], [4], [1]])
  context = jax.jit(network.encode)(params, types.Tokens(ids, mask))
  inputs = jax.random.randint(jax.random.key(2), (3, k, 6), 2, 256)
  expected, _, _ = jax.jit(network.decode)(params, inputs, context)
  cache = network.init_cache(context, k, 8)  # longer than needed
  step = jax.jit(network.decode)
  parts = []
  for index in range(0, 6, chunk):
    part, cache, _ = step(
      params, inputs[:, :, index : index + chunk], context, cache, index
    )
    parts.append(part)
  _close(jnp.concatenate(parts, axis=2), expected, 1e-5)


def test_padding_changes_nothing():
  network = _model()
  params = network.init(jax.random.key(0))
  ids = jax.random.randint(jax.random.key(1), (2, 5), 2, 256)
  inputs = jax.random.randint(jax.random.key(2), (2, 2, 4), 2, 256)
  expected = _log_probs(network, params, _tokens(ids), inputs)
  padded = _tokens(jnp.pad(ids, ((0, 0), (0, 7))))
  _close(_log_probs(network, params, padded, inputs), expected, 1e-5)


def test_scan_and_loop_have_the_same_parameters():
  looped, scanned = _model(scan=False), _model(scan=True)
  rng = jax.random.key(0)
  jax.tree.map(
    np.testing.assert_array_equal, looped.init(rng), scanned.init(rng)
  )


@pytest.mark.parametrize('bidirectional', [True, False])
def test_buckets_are_t5x_s(bidirectional):
  misc = np.load(TESTDATA / 'misc.npz')
  expected = misc['bucket_bidirectional' if bidirectional else 'bucket_causal']
  module = relative_positions.RelativePositions(
    nnx.Rngs(0), 1, 32, 128, bidirectional
  )
  table = jnp.arange(32.0)[None]  # the bias of a bucket is its number
  module.rel_embedding[...] = table
  one_query = module(300, 1, 601)[0, 0]
  np.testing.assert_array_equal(one_query, expected)
  square = module(0, 40, 40)[0]
  for i in (0, 17, 39):
    np.testing.assert_array_equal(square[i], expected[300 - i : 340 - i])


def test_bfloat16_is_t5x_s(golden):
  network = _model(dtype='bfloat16')
  params = _stack(golden, 'params/', network.abstract_params)
  ids = golden['batch/decoder_input_tokens'][:, None]

  @jax.jit
  def logits(params):
    prompts = _tokens(golden['batch/encoder_input_tokens'])
    context = network.encode(params, prompts)
    hidden, _, _ = network.decode(params, ids, context)
    assert hidden.dtype == jnp.bfloat16
    return network.logits(params, hidden)[:, 0]

  real = golden['batch/decoder_loss_weights'] > 0
  # Both round at 2^-8, and T5X is as far from its own float32 values.
  error = np.std((logits(params) - golden['logits'])[real])
  t5x_error = np.std((golden['logits_bfloat16'] - golden['logits'])[real])
  assert error < 1.1 * t5x_error


def test_dropout_needs_a_key_and_reaches_the_output():
  network = _model(dropout_rate=0.5)
  params = network.init(jax.random.key(0))
  ids = jnp.full((1, 1, 3), 5)
  prompts = _tokens(jnp.full((1, 4), 7))

  @jax.jit
  def hidden(rng):
    context = network.encode(params, prompts, rng=rng)
    return network.decode(params, ids, context, rng=rng)[0]

  np.testing.assert_array_equal(hidden(None), hidden(None))
  one, other = hidden(jax.random.key(1)), hidden(jax.random.key(2))
  assert not np.allclose(one, other)
  # The last dropout acts on the output: it zeroes the same half of the
  # features at all T positions.
  assert 0.3 < np.mean(one == 0) < 0.7
  np.testing.assert_array_equal((one == 0)[0, 0, 0], (one == 0)[0, 0, 2])


def test_reward_reads_the_last_real_token():
  network = _model(reward_head=True)
  params = network.init(jax.random.key(0))
  hidden = jax.random.normal(jax.random.key(1), (2, 3, 5, 64))
  mask = jnp.arange(5) < jnp.array([[1, 2, 3], [5, 4, 3]])[..., None]
  rewards = network.reward(params, hidden, mask)
  kernel = params['decoder']['reward_head']['kernel']
  np.testing.assert_allclose(
    rewards[0, 1], (hidden[0, 1, 1] @ kernel)[0], rtol=1e-5
  )
  changed = jnp.where(mask[..., None], hidden, 1e3)
  np.testing.assert_array_equal(rewards, network.reward(params, changed, mask))
  with pytest.raises(ValueError, match='reward_head'):
    headless = _model()
    headless.reward(headless.abstract_params, hidden, mask)


def test_errors_name_the_field():
  with pytest.raises(ValueError, match='mlp_activations.*swish'):
    _model(mlp_activations=('swish',))
  with pytest.raises(TypeError, match='vocab_size'):
    model.Model(t5.T5)
