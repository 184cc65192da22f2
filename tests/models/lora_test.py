"""LoRA: what the policy sees, what the reference does not, what is written."""

import functools
import json
import shutil

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import seqio

from ipo_md.algorithms import losses
from ipo_md.algorithms import objective
from ipo_md.algorithms import offline
from ipo_md.algorithms import online as online_lib
from ipo_md.algorithms import win_rate
from ipo_md.checkpoints import convert
from ipo_md.checkpoints import export_lora
from ipo_md.checkpoints import formats
from ipo_md.checkpoints import manager as manager_lib
from ipo_md.core import types
from ipo_md.judges import learned
from ipo_md.models import decoder_only
from ipo_md.models import lora
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from ipo_md.sampling import mixture
from ipo_md.sampling import sampler
from ipo_md.sampling import sequences

VOCABULARY = seqio.ByteVocabulary()
TARGETS = ('query', 'key', 'value', 'out', 'wi_0', 'wo')
COMMON = {
  'vocab_size': 32,
  'emb_dim': 16,
  'num_heads': 2,
  'head_dim': 8,
  'mlp_dim': 24,
  'logits_via_embedding': False,
  'dropout_rate': 0.0,
}
SIZES = {
  't5': {
    'num_encoder_layers': 2,
    'num_decoder_layers': 2,
    'mlp_activations': ('gelu', 'linear'),
  },
  'decoder': {
    'num_layers': 2,
    'num_kv_heads': 2,
    'rope_theta': 1e4,
    'norm_epsilon': 1e-5,
  },
}
NETWORKS = {'t5': t5.T5, 'decoder': decoder_only.DecoderOnly}
PROMPTS = types.Tokens(
  ids=jnp.array([[5, 9, 3, 7], [8, 4, 0, 0]]),
  mask=jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool),
)
COMPLETIONS = types.Completions(
  prompts=PROMPTS,
  completions=types.Tokens(
    ids=jax.random.randint(jax.random.key(5), (2, 2, 5), 2, 32),
    mask=jnp.ones((2, 2, 5), bool),
  ),
)


@functools.cache
def network(family: str, scan: bool = True) -> lora.Lora:
  sizes = COMMON | SIZES[family] | {'scan': scan}
  base = model_lib.Model(functools.partial(NETWORKS[family], **sizes))
  return lora.Lora(base, rank=3, alpha=6.0, targets=TARGETS)


def trained(model: lora.Lora) -> tuple[types.Params, types.FrozenParams]:
  """Adapters that are not 0, and the reference."""
  fresh = model.init(jax.random.key(1))
  params = jax.tree.map(
    lambda x: 0.3 * jax.random.normal(jax.random.key(2), x.shape), fresh
  )
  reference = model.base.init(jax.random.key(0))
  return params, types.FrozenParams(reference=reference)


def merged(model, params, frozen) -> types.Params:
  """W + alpha / r A B, written out."""
  flat = flax.traverse_util.flatten_dict(frozen.reference, sep='/')
  low = flax.traverse_util.flatten_dict(params, sep='/')
  for path in {p[:-2] for p in low}:
    flat[path] += model.alpha / model.rank * low[f'{path}/a'] @ low[f'{path}/b']
  return flax.traverse_util.unflatten_dict(flat, sep='/')


@functools.partial(jax.jit, static_argnums=0)
def log_probs(model, params):
  return sequences.log_probs(model, params, COMPLETIONS)[0]


def state_of(model, params, optimizer, *, ema=False) -> types.TrainState:
  return types.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    ema=params if ema else None,
  )


@pytest.mark.parametrize('family', ['t5', 'decoder'])
def test_policy_is_the_merged_network_and_its_gradient_of_a_and_b(family):
  model = network(family)
  params, frozen = trained(model)

  def value(of):
    weights = jnp.arange(20.0).reshape(2, 2, 5)
    return jax.jit(
      jax.value_and_grad(lambda p: jnp.sum(weights * log_probs(model, of(p))))
    )(params)

  with jax.default_matmul_precision('highest'):
    actual = value(lambda p: model.policy(p, frozen))
    expected = value(lambda p: merged(model, p, frozen))
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
  model = network('decoder', scan=False)
  reference = model.base.init(jax.random.key(0))
  start = model.policy(
    model.init(jax.random.key(1)), types.FrozenParams(reference=reference)
  )
  np.testing.assert_array_equal(
    log_probs(model, start), log_probs(model, reference)
  )


def test_reference_does_not_see_the_adapters():
  """A sampler of both scores each token as each network alone does."""
  model = network('decoder')
  params, frozen = trained(model)
  policy, reference = model.policy(params, frozen), frozen.reference

  @jax.jit
  def draw():
    return mixture.sample(
      model,
      policy,
      reference,
      (model.encode(policy, PROMPTS), model.encode(reference, PROMPTS)),
      jax.random.key(3),
      mixture_coefs=(0.5,),
      max_new_tokens=5,
      eos_id=1,
    )

  score = jax.jit(sequences.log_probs, static_argnums=0)

  def scores(params, drawn):
    completions = types.Completions(prompts=PROMPTS, completions=drawn.tokens)
    return score(model.base, params, completions)[0]

  mixed = draw()
  whole = merged(model, params, frozen)
  np.testing.assert_allclose(
    mixed.reference_log_probs, scores(reference, mixed), atol=1e-5
  )
  np.testing.assert_allclose(
    mixed.policy_log_probs, scores(whole, mixed), atol=1e-4
  )
  ratios = mixed.policy_log_probs - mixed.reference_log_probs
  assert np.max(np.abs(ratios)) > 0.1


def rewarding(params, completions) -> types.Labelled:
  """Likes even tokens."""
  del params
  tokens = completions.completions
  rewards = jnp.sum(tokens.mask * (tokens.ids % 2 == 0), axis=-1) * 1.0
  return learned._from_rewards(completions, rewards)


ALGORITHMS = {
  'ipo_md': (functools.partial(losses.ipo, tau=1.0), (0.125, 0.125)),
  'dpo': (functools.partial(losses.dpo, beta=1.0), (0.0, 0.0)),
  'slic': (functools.partial(losses.slic, beta=1.0), (0.0, 0.0)),
  'nash_md': (functools.partial(losses.policy_gradient, tau=0.1), (0.0, 0.125)),
  'rl': (functools.partial(losses.reinforce, tau=0.1), (0.0,)),
  'nca': (functools.partial(losses.nca, beta=1.0, alpha=1.0), (0.0,) * 4),
  'info_nca': (
    functools.partial(losses.info_nca, beta=1.0, alpha=1.0),
    (0.0,) * 4,
  ),
}


def online(model, name, **changes):
  loss, mixture_coefs = ALGORITHMS[name]
  arguments = {
    'model': model,
    'feedback': objective.Feedback(judge=rewarding),
    'loss': loss,
    'optimizer': optax.sgd(0.1),
    'mixture_coefs': mixture_coefs,
    'sampler': sampler.Sampler(max_new_tokens=5, eos_id=1),
  }
  return functools.partial(online_lib.online_step, **arguments | changes)


@pytest.mark.parametrize('name', ALGORITHMS)
def test_every_algorithm_steps_in_the_adapters_alone(name):
  model = network('decoder')
  state = state_of(model, trained(model)[0], optax.sgd(0.1))
  frozen = types.FrozenParams(
    reference=jax.eval_shape(model.base.init, jax.random.key(0))
  )
  after, _ = jax.eval_shape(
    online(model, name), state, frozen, PROMPTS, jax.random.key(0)
  )
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_a_moving_average_of_the_adapters_plays():
  model = network('decoder')
  params, frozen = trained(model)
  state = state_of(model, params, optax.sgd(0.1), ema=True)
  step = online(model, 'nash_md', ema_decay=0.5)
  after, metrics = jax.jit(step)(state, frozen, PROMPTS, jax.random.key(0))
  assert metrics['grad_norm'] > 1e-3
  moved = jax.tree.map(lambda a, b: a - b, after.params, params)
  averaged = jax.tree.map(lambda a, b: a - b, after.ema, params)
  jax.tree.map(
    lambda m, a: np.testing.assert_allclose(a, m / 2, atol=1e-6),
    moved,
    averaged,
  )


def test_offline_step_and_win_rate_see_policy_and_reference():
  model = network('decoder')
  params, frozen = trained(model)
  state = state_of(model, params, optax.sgd(0.1))
  batch = types.Labelled(
    completions=COMPLETIONS,
    completion_mask=jnp.ones((2, 2), bool),
    preference=jnp.array([1.0, 0.0]),
  )
  step = functools.partial(
    offline.offline_step,
    model=model,
    loss=ALGORITHMS['dpo'][0],
    optimizer=optax.sgd(0.1),
  )
  _, metrics = jax.jit(step)(state, frozen, batch, jax.random.key(0))
  ratio = log_probs(model, merged(model, params, frozen)) - log_probs(
    model, frozen.reference
  )
  np.testing.assert_allclose(
    metrics['log_ratio'], np.mean(np.sum(ratio, -1)), rtol=1e-4
  )
  measure = functools.partial(
    win_rate.win_rate_metrics,
    model=model,
    judge=rewarding,
    sampler=sampler.Sampler(max_new_tokens=5, eos_id=1),
  )
  measured = jax.jit(measure)(state, frozen, PROMPTS, jax.random.key(0))
  assert abs(measured['kl']) > 0.1


@pytest.fixture(scope='module', name='saved', params=['t5', 'decoder'])
def saved_fixture(request, tmp_path_factory):
  """A model, its parameters, and checkpoints of adapters and reference."""
  model = network(request.param)
  params, frozen = trained(model)
  path = tmp_path_factory.mktemp(request.param)
  for name, tree in (('base', frozen.reference), ('run', params)):
    adapts = None
    if name == 'run':
      adapts = manager_lib.adapted(model, str(path / 'base'))
    with manager_lib.open_manager(
      str(path / name), keep=manager_lib.Keep()
    ) as manager:
      state = types.TrainState(step=jnp.int32(1), params=tree, opt_state=())
      manager_lib.save(manager, state, VOCABULARY, adapts=adapts)
  return model, params, frozen, path


def export(model, path, output_format):
  export_lora.export(
    model=model,
    initial_checkpoint_path=str(path / 'run'),
    reference_checkpoint_path=str(path / 'base'),
    output_dir=str(path / output_format),
    output_format=output_format,
  )
  return path / output_format


def test_a_model_dir_of_adapters_is_read_as_the_whole_policy(saved, tmp_path):
  model, params, frozen, path = saved
  read = functools.partial(
    formats.read_params,
    abstract=model.base.abstract_params,
    config=model.config,
    name='CHECKPOINT_PATH',
  )
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6),
    read(str(path / 'run')),
    merged(model, params, frozen),
  )
  convert.convert(
    model=model.base,
    initial_checkpoint_path=str(path / 'run'),
    output_dir=str(tmp_path / 'whole'),
    output_format='hf',
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    read(str(tmp_path / 'whole')),
    read(str(path / 'run')),
  )
  (path / 'base').rename(tmp_path / 'base')
  message = 'CHECKPOINT_PATH .*run holds LoRA adapters, and their reference '
  with pytest.raises(
    ValueError, match=f'{message}.*/base/checkpoints/1 is not'
  ):
    read(str(path / 'run'))
  with pytest.raises(ValueError, match='gin/runs/export_lora.gin'):
    read(str(path / 'run'))
  (tmp_path / 'base').rename(path / 'base')


@pytest.mark.parametrize('output_format', ['hf', 'orbax', 't5x'])
def test_merged_export_is_the_policy(saved, output_format):
  model, params, frozen, path = saved
  output = export(model, path, output_format)
  loaded = formats.read_params(
    str(output),
    model.base.abstract_params,
    model.config,
    name='INITIAL_CHECKPOINT_PATH',
  )
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6),
    loaded,
    merged(model, params, frozen),
  )


def test_export_with_another_alpha_is_refused(saved):
  model, _, _, path = saved
  other = lora.Lora(
    model.base, rank=model.rank, alpha=3 * model.alpha, targets=model.targets
  )
  with pytest.raises(ValueError, match='LORA_ALPHA .* in the run of .*run'):
    export(other, path, 'peft')
  assert not (path / 'peft').exists()


def test_peft_export_has_its_names_and_its_product(saved):
  """Each module: W' + alpha / r B' A' in Hugging Face's orientation."""
  model, params, frozen, path = saved
  output = export(model, path, 'peft')
  arrays = safetensors.numpy.load_file(output / 'adapter_model.safetensors')
  config = json.loads((output / 'adapter_config.json').read_text())
  shutil.rmtree(path / 'hf', ignore_errors=True)
  whole = safetensors.numpy.load_file(
    export(model, path, 'hf') / 'model.safetensors'
  )
  convert.convert(
    model=model.base,
    initial_checkpoint_path=str(path / 'base'),
    output_dir=str(path / 'base_hf'),
    output_format='hf',
  )
  base = safetensors.numpy.load_file(path / 'base_hf' / 'model.safetensors')
  prefix, suffix = 'base_model.model.', '.lora_A.weight'
  modules = [
    name.removeprefix(prefix).removesuffix(suffix)
    for name in arrays
    if name.endswith(suffix)
  ]
  adapted = {n for n in whole if not np.array_equal(whole[n], base[n])}
  assert {f'{module}.weight' for module in modules} == adapted
  for module in modules:
    assert module.split('.')[-1] in config['target_modules']
    a = arrays[f'{prefix}{module}.lora_A.weight']
    b = arrays[f'{prefix}{module}.lora_B.weight']
    assert a.shape[0] == b.shape[1] == config['r']
    np.testing.assert_allclose(
      base[f'{module}.weight'] + config['lora_alpha'] / config['r'] * b @ a,
      whole[f'{module}.weight'],
      atol=1e-6,
    )


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
    lora.Lora(network('t5').base, **arguments)


def test_without_a_reference_there_is_nothing_to_adapt():
  model = network('t5')
  with pytest.raises(ValueError, match='REFERENCE_CHECKPOINT_PATH'):
    model.policy(trained(model)[0], types.FrozenParams())
