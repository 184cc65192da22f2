"""Tests that the sampling form of weights and caches changes no number."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.core import partitioning
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.models import cpu_layouts
from ipo_md.models import decoder_only
from ipo_md.models import layer_stack
from ipo_md.models import lora
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from ipo_md.sampling import mixture
from ipo_md.sampling import sequences
from tests.checkpoints import families_test

pytestmark = pytest.mark.slow

B, K, P, T, EOS = 8, 2, 5, 7, 1
COMMON = {
  'vocab_size': 32,
  'emb_dim': 16,
  'num_heads': 8,
  'head_dim': 4,
  'mlp_dim': 32,
  'dropout_rate': 0.0,
}


def network(family: str, *, scan: bool, tied: bool = False) -> model_lib.Model:
  sizes = COMMON | {'scan': scan, 'logits_via_embedding': tied}
  if family == 't5':
    return model_lib.Model(
      functools.partial(
        t5.T5,
        num_encoder_layers=1,
        num_decoder_layers=2,
        mlp_activations=('gelu', 'linear'),
        **sizes,
      )
    )
  experts = {'num_experts': 4} if family == 'mixtral' else {}
  return model_lib.Model(
    functools.partial(
      decoder_only.DecoderOnly,
      num_kv_heads=4,
      num_layers=2,
      rope_theta=1e4,
      norm_epsilon=1e-5,
      **sizes,
      **experts,
    )
  )


def prompts() -> types.Tokens:
  ids = jax.random.randint(jax.random.key(5), (B, P), 2, 32)
  mask = jnp.arange(P) < 1 + jnp.arange(B)[:, None] % P
  return types.Tokens(ids=jnp.where(mask, ids, 0), mask=mask)


def sample(model, policy, reference, given, rng, int8=False):
  return mixture.sample(
    model,
    policy,
    reference,
    (model.encode(policy, given), model.encode(reference, given)),
    rng,
    mixture_coefs=(0.25,) * K,
    max_new_tokens=T,
    eos_id=EOS,
    int8=int8,
  )


NETWORKS = pytest.mark.parametrize(
  ('family', 'scan', 'tied', 'adapted'),
  [
    ('t5', False, False, False),
    pytest.param('t5', True, True, False, marks=pytest.mark.proof),
    pytest.param('llama', False, True, False, marks=pytest.mark.proof),
    ('llama', True, True, False),
    ('llama', False, False, True),
    ('mixtral', False, False, False),
  ],
)


def set_form(strip: int, monkeypatch) -> None:
  """Sets the width of strips; 0 selects the form that TPUs use.

  Panels are made small, so that a kernel has several.
  """
  monkeypatch.setattr(partitioning, 'on_one_cpu', lambda: strip > 0)
  monkeypatch.setattr(cpu_layouts, 'STRIP_COLUMNS', strip)
  monkeypatch.setattr(cpu_layouts, 'PANEL_COLUMNS', 6)
  monkeypatch.setattr(cpu_layouts, 'PANELS', 2)


@pytest.mark.parametrize(
  'strip', [0, 2, pytest.param(3, marks=pytest.mark.proof)]
)
@NETWORKS
def test_sampled_log_probs_are_those_of_the_loss(
  family, scan, tied, adapted, strip, monkeypatch
):
  """The caches have widths 2, 4, 6 and 7, in either form."""
  set_form(strip, monkeypatch)
  monkeypatch.setattr(mixture, 'CACHE_BLOCK', 2)
  model, policy, reference = players(
    network(family, scan=scan, tied=tied), adapted
  )
  run = jax.jit(functools.partial(sample, model))
  sampled = run(policy, reference, prompts(), jax.random.key(2))
  assert sampled.tokens.mask[..., 3].any()  # longer than the first width
  given = types.Completions(prompts=prompts(), completions=sampled.tokens)
  exact = log_probs(model)
  for params, found in (
    (policy, sampled.policy_log_probs),
    (reference, sampled.reference_log_probs),
  ):
    np.testing.assert_allclose(found, exact(params, given), atol=2e-5)


def log_probs(model):
  """Returns the compiled function of the loss."""
  return jax.jit(
    lambda params, given: sequences.log_probs(model, params, given)[0]
  )


def players(model, adapted, change=lambda params: params):
  """Returns the model, its policy and its reference."""
  init = lambda model, seed: jax.jit(model.init)(jax.random.key(seed))
  reference = change(init(model, 1))
  if not adapted:
    return model, change(init(model, 0)), reference
  model = lora.Lora(model, rank=2, alpha=4.0, targets=('query', 'wi_0', 'wo'))
  adapters = jax.tree.map(lambda x: x + 0.1, init(model, 0))
  policy = model.policy(adapters, types.FrozenParams(reference=reference))
  return model, policy, reference


def on_a_grid(params):
  """Rounds each column of a kernel to a multiple of integers up to 127."""

  def of_leaf(path, w):
    if path[-1].key != 'kernel' or path[-2].key == 'router':
      return w
    whole = jnp.round(w * 127 / jnp.max(jnp.abs(w), axis=-2, keepdims=True))
    return whole * jnp.exp2(jnp.arange(w.shape[-1]) % 3 - 10)

  return jax.tree_util.tree_map_with_path(of_leaf, params)


@pytest.mark.parametrize('strip', [pytest.param(0, marks=pytest.mark.proof), 2])
@NETWORKS
def test_kernels_that_int8_holds_are_sampled_from_exactly(
  family, scan, tied, adapted, strip, monkeypatch
):
  set_form(strip, monkeypatch)
  model, policy, reference = players(
    network(family, scan=scan, tied=tied), adapted, on_a_grid
  )
  run = jax.jit(functools.partial(sample, model, int8=True))
  sampled = run(policy, reference, prompts(), jax.random.key(2))
  assert sampled.reference_log_probs is None
  given = types.Completions(prompts=prompts(), completions=sampled.tokens)
  np.testing.assert_allclose(
    sampled.policy_log_probs, log_probs(model)(policy, given), atol=2e-5
  )


@pytest.mark.parametrize(
  'family',
  [
    'gemma3',
    'qwen3_moe',
    pytest.param('qwen2', marks=pytest.mark.proof),
    pytest.param('phi3_partial', marks=pytest.mark.proof),
  ],
)
def test_int8_holds_the_kernels_of_every_family(family):
  """Biases, norms of queries and keys, soft caps and scales stay exact."""
  model, policy, reference = players(
    families_test.network(family), False, on_a_grid
  )
  run = jax.jit(functools.partial(sample, model, int8=True))
  sampled = run(policy, reference, prompts(), jax.random.key(2))
  given = types.Completions(prompts=prompts(), completions=sampled.tokens)
  np.testing.assert_allclose(
    sampled.policy_log_probs, log_probs(model)(policy, given), atol=2e-5
  )


@pytest.mark.parametrize('strip', [0, 2])
@pytest.mark.parametrize('family', ['t5', 'llama'])
def test_int8_rounds_by_less_than_half_a_step(family, strip, monkeypatch):
  """The largest weight of an output is 127 steps, and zeros stay zeros."""
  set_form(strip, monkeypatch)
  model = network(family, scan=True)
  params = model.init(jax.random.key(0))
  kernel = params['decoder']['layers']['mlp']['wi_0']['kernel']
  kernel = kernel.at[:, :, 3].set(0.0)
  params['decoder']['layers']['mlp']['wi_0']['kernel'] = kernel
  form = model.decode_form(params, int8=True)
  form = form['decoder']['layers']['mlp']['wi_0']['kernel']
  assert {x.dtype for x in jax.tree.leaves(form.kernel)} == {jnp.dtype('int8')}
  for one, exact in zip(layer_stack._unstack(form, 2), kernel, strict=True):
    found = jnp.eye(exact.shape[0]) @ one
    largest = jnp.max(jnp.abs(exact), axis=0)
    assert jnp.all(jnp.abs(found - exact) <= largest / 254 * 1.001)
    assert not found[:, 3].any()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  ('rows', 'inputs', 'outputs'),
  [(1, 5, 1), (16, 12, 64), (3, 8, 65), (7, 16, 2048), (2, 4, 2049)],
)
def test_panels_are_the_kernel(rows, inputs, outputs, dtype):
  key = jax.random.key(0)
  kernel = jax.random.normal(key, (2, inputs, outputs)).astype(dtype)
  x = jax.random.normal(jax.random.key(1), (rows, inputs)).astype(dtype)
  panels = cpu_layouts.in_panels(kernel)
  for layer in range(2):
    found = panels[layer].product(x, jnp.float32)
    expected = jnp.dot(x, kernel[layer], preferred_element_type=jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (x @ panels[layer]).dtype == dtype


@pytest.mark.parametrize('scan', [False, True])
def test_no_weight_is_gathered_at_each_token(scan):
  """Parameters split over `fsdp` are gathered once, before the loop."""
  model = network('t5', scan=scan)
  mesh = sharding.make_mesh((1, 8, 1))

  def draw(params, context, rng):
    return mixture.sample(
      model,
      params,
      None,
      (context, None),
      rng,
      mixture_coefs=(0.0,) * K,
      max_new_tokens=T,
      eos_id=EOS,
    )

  with jax.set_mesh(mesh):
    params = sharding.abstract_params(
      mesh, model.abstract_params, model.logical_axes
    )
    context = jax.eval_shape(model.encode, params, prompts())
    program = jax.jit(draw).lower(params, context, jax.random.key(0)).compile()
  moved = re.findall(
    r' (all-gather|all-to-all|collective-permute)\S*\(.*op_name="([^"]*)"',
    program.as_text(),
  )
  assert [name for _, name in moved if 'while' not in name]
  assert not [name for _, name in moved if 'while' in name]
