"""Tests that attention in blocks of queries, or over strips, is attention."""

import itertools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from ipo_md.core import sharding
from ipo_md.models import attention
from ipo_md.models import cpu_layouts
from ipo_md.models import kv_cache

pytestmark = pytest.mark.slow

N, Q, H, G, D, S = 2, 19, 4, 2, 8, 11


def normal(seed: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape)


def assert_same_in_blocks(f, arguments, monkeypatch):
  """Compares f's value and gradients in blocks of 8 queries and at once."""

  def loss(*arguments):
    out = f(*arguments)
    return jnp.sum(out * normal(9, *out.shape)), out

  both = jax.grad(loss, argnums=range(len(arguments)), has_aux=True)
  expected = jax.jit(both)(*arguments)
  whole = jax.make_jaxpr(both)(*arguments)
  monkeypatch.setattr(attention, 'SCORES_BLOCK', 1)
  found = jax.jit(lambda *x: both(*x))(*arguments)
  in_blocks = jax.make_jaxpr(lambda *x: both(*x))(*arguments)
  assert 'scan' in str(in_blocks)
  assert 'scan' not in str(whole)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
    found,
    expected,
  )


@pytest.mark.parametrize('dropout', [0.0, 0.5])
def test_attention(dropout, monkeypatch):
  mask = jnp.where(jnp.arange(S) < jnp.array([[11], [4]]), 0.0, -1e10)
  rng = jax.random.key(3) if dropout else None

  def attend(query, keys, values, bias):
    biases = (bias, mask[:, None, None])
    return attention.attention(
      query, keys, values, *biases, dropout_rate=dropout, rng=rng
    )

  arguments = (
    normal(0, N, Q, H, D),
    normal(1, N, G, D, S),
    normal(2, N, G, S, D),
    normal(3, 1, G, Q, S),
  )
  assert_same_in_blocks(attend, arguments, monkeypatch)


@pytest.mark.parametrize('windowed', [False, True])
def test_joint_attention(windowed, monkeypatch):
  """With a window, each query sees other columns of the context."""
  k, p = 3, 5
  visible = jnp.arange(p) < jnp.array([5, 2])[:, None, None]
  if windowed:
    visible &= jnp.arange(Q)[:, None] - jnp.arange(p) < 7
  context_bias = jnp.where(visible, 0.0, attention.MASKED)
  causal = jnp.arange(Q)[:, None] >= jnp.arange(Q)
  own_bias = jnp.where(causal, 0.0, attention.MASKED)

  def attend(query, keys, values, own_keys, own_values):
    context, own = (keys, values), (own_keys, own_values)
    return attention.joint_attention(
      query, context, own, context_bias, own_bias
    )

  arguments = (
    normal(0, N, k, Q, H, D),
    normal(1, N, G, D, p),
    normal(2, N, G, p, D),
    normal(3, N * k, G, D, Q),
    normal(4, N * k, G, Q, D),
  )
  assert_same_in_blocks(attend, arguments, monkeypatch)


def test_blocks_on_a_mesh(monkeypatch):
  """The mesh splits prompts and heads but not queries."""
  n, heads = 4, PartitionSpec(('data', 'fsdp'), 'tensor')
  arguments = (
    normal(0, n, Q, H, D),
    normal(1, n, G, D, S),
    normal(2, n, G, S, D),
    normal(3, 1, G, Q, S),
  )
  specs = (
    PartitionSpec(('data', 'fsdp'), None, 'tensor'),
    heads,
    heads,
    PartitionSpec(None, 'tensor'),
  )

  def loss(*arguments):
    return jnp.sum(attention.attention(*arguments) ** 2)

  both = jax.value_and_grad(loss, argnums=range(4))
  expected = jax.jit(both)(*arguments)
  monkeypatch.setattr(attention, 'SCORES_BLOCK', 1)
  with jax.set_mesh(sharding.make_mesh((2, 2, 2))):
    placed = [
      jax.device_put(x, s) for x, s in zip(arguments, specs, strict=True)
    ]
    assert 'scan' in str(jax.make_jaxpr(lambda *x: both(*x))(*placed))
    found = jax.jit(lambda *x: both(*x))(*placed)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
    found,
    expected,
  )


@pytest.mark.parametrize(
  ('queries', 'scores', 'block'),
  [
    (896, 2**23, 896),  # all fit
    (896, 49 * 2**20, 128),  # 146 fit, and 128 is a seventh of 896
    (520, 520 * 2**14 + 1, 264),  # two equal blocks rather than 512 and 8
    (1024, 2**40, 8),  # never less than a tile
  ],
)
def test_blocks_are_multiples_of_a_tile(queries, scores, block):
  assert attention._block(queries, scores) == block


def test_scores_of_a_whole_batch_are_never_stored(monkeypatch):
  """This holds in the forward pass and in the gradient."""
  query, keys = normal(0, 4, 64, 4, 8), normal(1, 4, 4, 8, 64)
  values = keys.swapaxes(2, 3)
  bias = jnp.zeros((1, 1, 1, 64))
  monkeypatch.setattr(attention, 'SCORES_BLOCK', 4 * 4 * 16 * 64)

  def loss(query, keys, values):
    return jnp.sum(attention.attention(query, keys, values, bias) ** 2)

  text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(query, keys, values).compile()
  text = text.as_text()
  assert 'f32[4,4,16,64]' in text or 'f32[4,4,16,1,64]' in text
  assert 'f32[4,4,64,64]' not in text
  assert 'f32[4,4,64,1,64]' not in text


@pytest.mark.parametrize('columns', [64, 65, 128, 200])
def test_keys_in_strips_are_the_keys(columns):
  """On a CPU, strips are written a few columns at a time and attended to."""
  cache = kv_cache.empty(1, (N, G, D, columns), jnp.float32)[0]
  in_strips = isinstance(cache[0], cpu_layouts.Strips)
  assert in_strips == (columns > 64)
  keys = normal(0, N, G, D, columns)
  values = normal(1, N, G, columns, D)
  write = jax.jit(kv_cache.write)
  for start, end in itertools.pairwise((0, 1, 63, 64, columns)):
    new = (keys[..., start:end], values[:, :, start:end])
    cache = write(cache, new, start)
  jax.tree.map(
    np.testing.assert_array_equal,
    cache,
    (cpu_layouts.in_strips(keys), values),
  )

  query = normal(2, N, 2, H, D)
  bias = normal(3, N, 1, 1, columns)
  np.testing.assert_allclose(
    attention.attention(query, *cache, bias),
    attention.attention(query, keys, values, bias),
    rtol=1e-5,
    atol=1e-5,
  )
  context = normal(4, N, G, D, columns), normal(5, N, G, columns, D)
  context_bias, own_bias = jnp.zeros((N, 1, columns)), jnp.zeros((2, columns))
  attend = lambda context, own: attention.joint_attention(
    query[:, None], context, own, context_bias, own_bias
  )
  np.testing.assert_allclose(
    attend((cpu_layouts.in_strips(context[0]), context[1]), cache),
    attend(context, (keys, values)),
    rtol=1e-5,
    atol=1e-5,
  )
