"""Tests of the optimizers and schedules against values computed with T5X."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ipo_md.optim import optimizers
from ipo_md.optim import schedules

_TESTDATA = str(pathlib.Path(__file__).parents[1] / 'testdata')


@functools.cache
def _fixture():
  """Loads parameters, gradients and T5X's parameters after steps 1 to 3."""
  golden = np.load(os.path.join(_TESTDATA, 't5x', 'adafactor_tiny.npz'))
  model = np.load(os.path.join(_TESTDATA, 't5x', 't5_1_1_tiny.npz'))

  def tree(source, prefix):
    return {
      k.removeprefix(prefix): source[k]
      for k in source.files
      if k.startswith(prefix)
    }

  return (
    tree(model, 'params/'),
    tree(model, 'grads/'),
    [tree(golden, f'step{n}/params/') for n in (1, 2, 3)],
    golden['grad_coefs'],
    float(golden['learning_rate']),
  )


def _stack(tree):
  """Stacks layers_0/x and layers_1/x into layers/x of shape [2, ...]."""
  out = {}
  for name, value in tree.items():
    if 'layers_0' in name:
      other = tree[name.replace('layers_0', 'layers_1')]
      out[name.replace('layers_0', 'layers')] = np.stack([value, other])
    elif 'layers_1' not in name:
      out[name] = value
  return out


def _axes(params):
  def axes(name, x):
    lead = ('layers',) if '/layers/' in name else ()
    return lead + ('embed', 'mlp')[: x.ndim - len(lead)]

  return {name: axes(name, x) for name, x in params.items()}


def _steps(params, grads, coefs, **kwargs):
  optimizer = optimizers.adafactor(_axes(params), **kwargs)

  @jax.jit
  def step(params, state, coef):
    scaled = jax.tree.map(lambda g: coef * g, grads)
    updates, state = optimizer.update(scaled, state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  out = []
  for coef in coefs:
    params, state = step(params, state, coef)
    out.append(params)
  return out


class TestAdafactor:
  @pytest.mark.parametrize('arrange', [lambda x: x, _stack])
  def test_t5x(self, arrange):
    params, grads, golden, coefs, learning_rate = _fixture()
    ours = _steps(
      arrange(params), arrange(grads), coefs, learning_rate=learning_rate
    )
    for step, expected in zip(ours, golden, strict=True):
      for name, value in arrange(expected).items():
        np.testing.assert_allclose(step[name], value, atol=1e-6, err_msg=name)

  def test_factored_kernel_agrees_with_optax(self):
    rng = np.random.default_rng(0)
    params = {'kernel': rng.normal(size=(130, 150)).astype(np.float32)}
    grads = {'kernel': rng.normal(size=(130, 150)).astype(np.float32)}
    ours = _steps(params, grads, (1.0, -0.5, 2.0), learning_rate=0.01)
    theirs = optax.adafactor(0.01)
    state = theirs.init(params)
    for coef in (1.0, -0.5, 2.0):
      scaled = jax.tree.map(lambda g, c=coef: c * g, grads)
      updates, state = theirs.update(scaled, state, params)
      params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(ours[-1]['kernel'], params['kernel'], atol=1e-6)

  @pytest.mark.parametrize('shape', [(3, 130, 150), (3, 150, 130), (3, 7)])
  def test_a_stack_is_its_entries(self, shape):
    rng = np.random.default_rng(1)
    # The entries differ in scale, so that a scale of the whole stack shows.
    scale = np.array([0.1, 1.0, 10.0]).reshape(3, *[1] * (len(shape) - 1))
    params = (scale * rng.normal(size=shape)).astype(np.float32)
    grads = (scale**2 * rng.normal(size=shape)).astype(np.float32)
    run = functools.partial(_steps, coefs=(1.0, -0.5), learning_rate=0.01)
    stacked = run({'/layers/x': params}, {'/layers/x': grads})
    for i in range(3):
      alone = run({'x': params[i]}, {'x': grads[i]})
      np.testing.assert_allclose(
        stacked[-1]['/layers/x'][i], alone[-1]['x'], rtol=1e-6
      )

  def test_expert_kernels_are_one_by_one(self):
    rng = np.random.default_rng(1)
    params = {'x': rng.normal(size=(2, 3, 130, 128)).astype(np.float32)}
    axes = {'x': ('layers', 'expert', 'embed', 'mlp')}
    state = optimizers.adafactor(axes, learning_rate=0.01).init(params)
    assert state.v_row['x'].shape == (2, 3, 128)
    assert state.v_col['x'].shape == (2, 3, 130)
    assert state.v['x'].shape == (2, 3, 1)

  def test_max_gradient_norm(self):
    params = {'x': jnp.ones(4)}
    grads = {'x': jnp.full(4, 50.0)}
    optimizer = optimizers.adafactor(
      {'x': ('embed',)},
      learning_rate=0.1,
      clipping_threshold=None,
      max_gradient_norm=1.0,
    )
    _, state = optimizer.update(grads, optimizer.init(params), params)
    # The first decay is 0, so v is the square of the clipped gradient, 1/2.
    np.testing.assert_allclose(state[1].v['x'], 0.25, rtol=1e-6)

  def test_adapters_move_by_the_learning_rate(self):
    """An adapter starts at 0, and its scale would be the least one, 1e-3."""
    axes = {'kernel': ('embed', 'mlp'), 'adapter': ('lora_rank', 'mlp')}
    params = {name: jnp.zeros((2, 3)) for name in axes}
    grads = jax.tree.map(jnp.ones_like, params)
    optimizer = optimizers.adafactor(axes, learning_rate=0.1)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates['kernel'], -1e-4, rtol=1e-5)
    np.testing.assert_allclose(updates['adapter'], -0.1, rtol=1e-5)

  def test_bfloat16_parameters_keep_float32_moments(self):
    params = {'x': jnp.ones((128, 128), jnp.bfloat16)}
    optimizer = optimizers.adafactor({'x': ('embed', 'mlp')}, learning_rate=0.1)
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    assert state.v_row['x'].dtype == jnp.float32
    assert optax.apply_updates(params, updates)['x'].dtype == jnp.bfloat16


class TestAdam:
  def test_first_step_is_the_sign(self):
    params = {'x': jnp.array([1.0, -2.0, 3.0])}
    grads = {'x': jnp.array([0.3, -5.0, 0.02])}
    optimizer = optimizers.adam({'x': ('embed',)}, learning_rate=0.1)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates['x'], [-0.1, 0.1, -0.1], rtol=1e-5)

  def test_weight_decay(self):
    params = {'x': jnp.array([1.0, -2.0])}
    grads = {'x': jnp.zeros(2)}
    optimizer = optimizers.adam(
      {'x': ('embed',)}, learning_rate=0.1, weight_decay=0.01
    )
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates['x'], [-0.001, 0.002], rtol=1e-5)


# The settings with which T5X's schedulers computed the fixture.
_SCHEDULES = (
  schedules.rsqrt(learning_rate=0.01, warmup_steps=10_000),
  schedules.rsqrt(learning_rate=0.5 / 1000**0.5, warmup_steps=1000),
  schedules.constant(learning_rate=0.001),
  schedules.linear(learning_rate=0.01, warmup_steps=1000, decay_steps=100_000),
  schedules.rsqrt(learning_rate=1.0, warmup_steps=1000),
  schedules.stepwise(learning_rate=0.5, decay_factor=0.5, steps_per_decay=5000),
  schedules.cosine(
    learning_rate=0.5, warmup_steps=1000, steps_per_cycle=20_000
  ),
)


class TestSchedules:
  @pytest.mark.parametrize('number', range(len(_SCHEDULES)))
  def test_t5x(self, number):
    golden = np.load(os.path.join(_TESTDATA, 't5x', 'misc.npz'))
    ours = [
      schedules.learning_rate_at(_SCHEDULES[number], jnp.int32(step))
      for step in golden['lr_steps']
    ]
    np.testing.assert_allclose(ours, golden[f'lr_{number}'], rtol=1e-5)

  def test_constant_with_warmup(self):
    schedule = schedules.constant(learning_rate=0.1, warmup_steps=10)
    rates = [float(schedule(step)) for step in (0, 5, 10, 11)]
    np.testing.assert_allclose(rates, [1e-8, 0.05, 0.1, 0.1], rtol=1e-6)

  def test_the_first_update_is_step_0(self):
    params = {'x': jnp.ones(3)}
    schedule = schedules.constant(learning_rate=0.1, warmup_steps=10)
    for optimizer in (optimizers.adafactor, optimizers.adam):
      made = optimizer({'x': ('embed',)}, learning_rate=schedule)
      state = made.init(params)
      first, state = made.update(params, state, params)
      second, _ = made.update(params, state, params)
      np.testing.assert_allclose(first['x'], -1e-8, rtol=1e-4)
      np.testing.assert_allclose(second['x'], -0.01, rtol=1e-4)


def test_skipping_leaves_parameters_and_moments_as_they_are():
  """Two good gradients give the same result with two bad ones between them."""
  good, large = {'w': jnp.array([0.5, -1.0])}, {'w': jnp.array([30.0, 40.0])}
  bad = {'w': jnp.array([jnp.nan, 1.0])}
  inner = optax.adam(0.1)
  wrapped = optimizers.skipping(inner, max_gradient_norm=49.0)

  def run(optimizer, grads):
    params = {'w': jnp.array([1.0, 2.0])}
    state, in_a_row = optimizer.init(params), []
    for grad in grads:
      updates, state = optimizer.update(grad, state, params)
      params = optax.apply_updates(params, updates)
      in_a_row.append(int(getattr(state, 'in_a_row', 0)))
    return params, getattr(state, 'inner', state), in_a_row

  expected = run(inner, [good, good])
  found = run(wrapped, [good, bad, large, good])
  jax.tree.map(np.testing.assert_array_equal, found[:2], expected[:2])
  assert found[2] == [0, 1, 2, 0]
  assert run(optimizers.skipping(inner, max_gradient_norm=None), [large])[
    2
  ] == [0]
