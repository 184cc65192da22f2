"""Traces the runs of the papers at full size, with published settings."""

import functools

import gin
import jax
import pytest

from ipo_md.data import dataset as dataset_lib
from ipo_md.evaluation import drawing
from ipo_md.models import lora
from tests.gin_files import gin_resolve

pytestmark = pytest.mark.slow

without_data = gin_resolve.without_data
_FOLDER = gin_resolve.ROOT / 'gin' / 'papers'
_STARTED = {
  'MODEL_DIR': "'/run'",
  'INITIAL_CHECKPOINT_PATH': "'/policy'",
}
_JUDGED = _STARTED | {'JUDGE_CHECKPOINT_PATH': "'/judge'"}
_NCA = _STARTED | {'TOKENIZER_PATH': "'/tokenizer.json'"}
# The bindings of a user and the published hyperparameters.
RUNS = {
  'ipo_md/supervised': (_STARTED, {}),
  'ipo_md/comparator': (_STARTED, {}),
  'ipo_md/reward_model': (_STARTED, {}),
  'ipo_md/ipo': (_JUDGED, {'losses.ipo.tau': 1}),
  'ipo_md/ipo_md': (_JUDGED, {'losses.ipo.tau': 1}),
  'ipo_md/dpo': (_JUDGED, {'losses.dpo.beta': 5}),
  'ipo_md/slic': (_JUDGED, {'losses.slic.beta': 10}),
  'ipo_md/nash_md': (_JUDGED, {'losses.policy_gradient.tau': 0.008}),
  'ipo_md/rl': (_JUDGED, {'losses.reinforce.tau': 0.05}),
  'nca/nca': (_NCA, {'losses.nca.beta': 0.01, 'losses.nca.alpha': 0}),
  'nca/info_nca': (
    _NCA,
    {'losses.info_nca.beta': 0.01, 'losses.info_nca.alpha': 0},
  ),
  'nca/dpo': (_NCA, {'losses.dpo.beta': 0.01}),
}
_OTHER_LOSS = ('ipo_md/ipo', 'ipo_md/dpo', 'ipo_md/slic', 'nca/info_nca')
_MIXTURES = {'ipo_md': (0.125, 0.125), 'nash_md': (0, 0.125), 'rl': (0,)}


def _value(name: str):
  """Returns the value of a binding, with its macros resolved."""
  value = gin.query_parameter(name)
  while getattr(value, 'selector', None) == 'gin.macro':
    value = gin.query_parameter(f'{"/".join(value.scopes)}/gin.macro.value')
  return value


def _resolve(name: str):
  return gin_resolve.resolve_files(
    [f'gin/papers/{name}.gin'],
    [f'{key} = {value}' for key, value in RUNS[name][0].items()],
    vocabulary='mistral_7b' if name.startswith('nca') else 't5_',
  )


@pytest.mark.parametrize('name', RUNS)
def test_run_has_published_settings(name):
  given, published = RUNS[name]
  arguments = _resolve(name)
  for binding, value in published.items():
    assert _value(binding) == value
  paper, _, algorithm = name.partition('/')
  rate = _value('optim.constant.learning_rate')
  if given is _JUDGED:
    assert rate == (3e-5 if algorithm == 'nash_md' else 1e-4)
    coefs = _MIXTURES.get(algorithm, (0, 0))
    assert _value('algorithms.online_step.mixture_coefs') == coefs
    assert arguments['batch_size'] == 32
    assert arguments['schedule'].train_steps == 30_000
    judge = 'reward_model' if algorithm == 'rl' else 'comparator'
    assert _value('algorithms.Feedback.judge').selector == f'judges.{judge}'
  if paper == 'nca':
    assert rate == 5e-6
    assert isinstance(arguments['model'], lora.Lora)
    assert arguments['model'].alpha == 16
    assert set(arguments['model'].targets) == {
      *('query', 'key', 'value', 'out', 'wi_0', 'wi_1', 'wo')
    }
    assert _value('optim.adam.max_gradient_norm') == 1.0
    warmup = _value('optim.cosine.warmup_steps')
    cycle = _value('optim.cosine.steps_per_cycle')
    assert warmup + cycle == arguments['schedule'].train_steps == 1936
    k = 2 if algorithm == 'dpo' else 4
    batch = gin_resolve.batch_of(arguments['dataset'](), 32)
    assert batch.completions.completions.ids.shape == (32, k, 512)


@pytest.mark.parametrize(
  'name',
  [
    # These differ from another run in their loss alone.
    pytest.param(name, marks=[pytest.mark.proof] * (name in _OTHER_LOSS))
    for name in RUNS
  ],
)
def test_run_traces(name):
  gin_resolve.trace(_resolve(name), evaluate=True)


def test_side_by_side_traces():
  arguments = gin_resolve.resolve_files(
    ['gin/papers/ipo_md/side_by_side.gin'],
    [
      "MODEL_DIR = '/report'",
      "POLICIES = {'supervised': '/supervised', 'ipo': '/ipo'}",
      *(
        f"{name}_CHECKPOINT_PATH = '/{name}'"
        for name in ('REFERENCE', 'COMPARATOR', 'REWARD_MODEL')
      ),
    ],
    vocabulary='t5_',
  )
  prompts = arguments['prompts']
  dataset, model = prompts.dataset(), arguments['model']
  dataset_lib.check_vocabulary(dataset, model.config.vocab_size)
  assert (prompts.examples, prompts.batch_size) == (2000, 80)
  drawn, *_ = jax.eval_shape(
    functools.partial(
      drawing._sample, model=model, sampler=arguments['sampler'], k=2
    ),
    model.abstract_params,
    model.abstract_params,
    gin_resolve.batch_of(dataset, 80),
    jax.eval_shape(jax.random.key, 0),
  )
  assert drawn.completions.ids.shape == (80, 2, 128)
  for name in ('comparator', 'reward_model'):
    bound = gin.get_bindings(f'{name}/judges.LearnedJudge')
    judged = jax.eval_shape(
      bound['judge'], bound['model'].abstract_params, drawn
    )
    assert judged.preference.shape == (80,)
  # The two judges read different prompts.
  assert '{second}' in _value('comparator/judges.Template.prompt')
  assert '{second}' not in _value('reward_model/judges.Template.prompt')


def test_every_complete_file_has_a_test():
  found = {
    str(path.relative_to(_FOLDER).with_suffix(''))
    for path in gin_resolve.complete_files(_FOLDER)
  }
  assert found == {*RUNS, 'ipo_md/side_by_side'}
