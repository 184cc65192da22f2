"""Tests run files other than the training runs, and overlays."""

import dataclasses
import functools

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md.algorithms import objective
from ipo_md.algorithms import reference_log_probs
from ipo_md.core import sharding
from ipo_md.core import types
from ipo_md.data import dataset as dataset_lib
from ipo_md.evaluation import drawing
from ipo_md.games import game
from ipo_md.models import lora
from ipo_md.sampling import mixture
from ipo_md.sampling import sampler
from ipo_md.sampling import sequences
from ipo_md.tpu import precompile
from ipo_md.training import state as state_lib
from tests.gin_files import gin_resolve

Choice = gin_resolve.Choice
without_data = gin_resolve.without_data


@pytest.mark.parametrize('overlay', ['smoke', 'lora'])
def test_overlay_traces(overlay):
  choice = Choice(
    'online', 't5_tiny', 'mini_tldr', 'likelihood', 'ipo_md', overlay=overlay
  )
  arguments = gin_resolve.resolve(choice)
  assert isinstance(arguments['model'], lora.Lora) == (overlay == 'lora')
  gin_resolve.trace(arguments, evaluate=overlay == 'lora')


@pytest.mark.parametrize('algorithm', gin_resolve.files('algorithms'))
def test_game_traces(algorithm):
  arguments = gin_resolve.resolve(
    Choice('game', '', '', algorithm=algorithm), ["MODEL_DIR = '/run'"]
  )
  model = game.tabular_model(arguments['game'])
  optimizer = arguments['optimizer'](None)
  params = model.abstract_params
  players = arguments['players']
  state = jax.eval_shape(
    lambda p: types.TrainState(
      jnp.int32(0), p, optimizer.init(p), players=players.first(p)
    ),
    params,
  )
  n = len(arguments['game'].preference)
  judge = {
    'preference': jax.ShapeDtypeStruct((1, n, n), np.float32),
    'rewards': jax.ShapeDtypeStruct((1, n), np.float32),
  }
  jax.eval_shape(
    functools.partial(
      arguments['step'],
      model=model,
      feedback=objective.Feedback(judge=game.matrix_judge),
      optimizer=optimizer,
      sampler=sampler.Sampler(max_new_tokens=1, eos_id=-1),
    ),
    state,
    types.FrozenParams(reference=params, judge=judge),
    types.Tokens(
      ids=jax.ShapeDtypeStruct((4, 1), np.int32),
      mask=jax.ShapeDtypeStruct((4, 1), bool),
    ),
    jax.eval_shape(jax.random.key, 0),
  )


def test_precomputed_log_probs_round_trip(tmp_path, monkeypatch):
  """One run writes log-probabilities, and an offline run reads them.

  The offline run does not load a reference.
  """
  path = f"REFERENCE_LOG_PROBS = '{tmp_path}/found.npz'"
  choice = Choice('reference_log_probs', 't5_1_1_large', 'ultrafeedback')
  written = gin_resolve.resolve(
    choice, [path, "REFERENCE_CHECKPOINT_PATH = '/policy'", 'BATCH_SIZE = 8']
  )
  dataset = written['dataset']()
  found, _ = jax.eval_shape(
    functools.partial(sequences.log_probs, written['model']),
    written['model'].abstract_params,
    gin_resolve.batch_of(dataset, written['batch_size']).completions,
  )
  assert found.shape == (8, 2, 512)
  np.savez(
    written['path'],
    log_prob=np.zeros((1, 2), np.float32),
    examples=reference_log_probs._fingerprint(dataset),
  )
  gin.clear_config()
  choice = dataclasses.replace(
    choice, run='offline_precomputed', algorithm='ipo', bindings=(path,)
  )
  gin_resolve.trace(gin_resolve.resolve(choice))


def test_side_by_side_over_http(tmp_path):
  arguments = gin_resolve.resolve(
    Choice('side_by_side', 'mistral_7b', 'gsm8k', 'http'),
    [
      "MODEL_DIR = '/report'",
      "POLICIES = {'nca': ['/nca_1', '/nca_2'], 'dpo': '/dpo'}",
      "REFERENCE_CHECKPOINT_PATH = '/supervised'",
      "JUDGES = {'rater': %JUDGE, 'right': @task_metrics.MetricJudge()}",
      "BASE_URL = 'http://localhost:8000/v1'",
      "RATER = 'rater'",
      'API_KEY_VARIABLE = None',
      f"RATER_CACHE = '{tmp_path}/answers.sqlite'",
    ],
  )
  prompt = arguments['judges']['rater'].fill(text='x', first='y', second='z')
  assert 'Text - x, Summary 1 - y, Summary 2 - z.' in prompt
  assert arguments['judges']['right'].metric == 'exact_match'
  dataset = arguments['prompts'].dataset()
  metrics = arguments['task_metrics'](dataset, 1)
  assert metrics([''], ['#### 1'])[0].keys() == {'exact_match'}


@pytest.mark.parametrize(
  ('task', 'metric'),
  [('math_answers', 'math_correct'), ('code_problems', 'pass_rate')],
)
def test_side_by_side_prefers_what_the_metric_of_a_task_prefers(task, metric):
  arguments = gin_resolve.resolve(
    Choice('side_by_side', 'mistral_7b', task),
    [
      "MODEL_DIR = '/report'",
      "POLICIES = {'nca': '/nca', 'dpo': '/dpo'}",
      "REFERENCE_CHECKPOINT_PATH = '/supervised'",
      "JUDGES = {'right': @task_metrics.MetricJudge()}",
    ],
  )
  judge = arguments['judges']['right']
  assert (judge.mixture_or_task_name, judge.metric) == (task, metric)


@pytest.mark.parametrize(
  ('run', 'task', 'learned'),
  [
    ('truth', 'mini_tldr', ('REWARD_MODEL',)),
    ('mini_tldr', 'mini_tldr', ('REWARD_MODEL', 'PREFERENCE_MODEL')),
    ('pairwise', 'mini_tldr', ('PREFERENCE_MODEL',)),
    ('cyclic', 'mini_tldr_cyclic', ('PREFERENCE_MODEL',)),
  ],
)
def test_side_by_side_of_the_embedded_task(run, task, learned):
  choice = Choice(f'side_by_side_{run}', 't5_tiny', task)
  paths = ('REFERENCE', *learned)
  arguments = gin_resolve.resolve(
    choice,
    [
      "MODEL_DIR = '/report'",
      "POLICIES = {'supervised': '/supervised', 'ipo': '/ipo'}",
      *(f"{name}_CHECKPOINT_PATH = '/{name}'" for name in paths),
    ],
  )
  model, prompts = arguments['model'], arguments['prompts']
  params = model.abstract_params
  dataset = prompts.dataset()
  dataset_lib.check_vocabulary(dataset, model.config.vocab_size)
  drawn, *_ = jax.eval_shape(
    functools.partial(
      drawing._sample, model=model, sampler=arguments['sampler'], k=2
    ),
    params,
    params,
    gin_resolve.batch_of(dataset, prompts.batch_size),
    jax.eval_shape(jax.random.key, 0),
  )
  assert arguments['judges'].keys() == {
    'ground_truth',
    *map(str.lower, learned),
  }
  for name in map(str.lower, learned):
    bound = gin.get_bindings(f'{name}/judges.LearnedJudge')
    judged = jax.eval_shape(
      bound['judge'], bound['model'].abstract_params, drawn
    )
    assert judged.preference.shape == (prompts.batch_size,)
  pair = arguments['agreement'].dataset().rows([(0, 0)])
  assert pair.preference.shape == (1,)
  truth = arguments['judges']['ground_truth'].preference
  assert truth.__module__.endswith('cyclic_truth') == (run == 'cyclic')


@pytest.mark.parametrize(
  ('run', 'judges'),
  [
    (
      'mini_tldr',
      {'preference_model': 'comparator', 'reward_model': 'likelihood'},
    ),
    ('pairwise', {'preference_model': 'pairwise_likelihood'}),
  ],
)
def test_the_report_reads_the_parameters_that_judge_runs_write(run, judges):
  """Some judges are trained without the additional head."""
  report = gin_resolve.resolve(
    Choice(f'side_by_side_{run}', 't5_tiny', 'mini_tldr'),
    [
      "MODEL_DIR = '/report'",
      "POLICIES = {'supervised': '/supervised', 'ipo': '/ipo'}",
      "REFERENCE_CHECKPOINT_PATH = '/supervised'",
      *(f"{n.upper()}_CHECKPOINT_PATH = '/{n}'" for n in judges),
    ],
  )
  for name, judge in judges.items():
    gin.clear_config()
    trained = gin_resolve.resolve(
      Choice('judge', 't5_tiny', 'mini_tldr', judge)
    )
    shapes = lambda model: jax.tree.map(
      lambda x: x.shape, model.abstract_params
    )
    assert shapes(report['judges'][name]._model) == shapes(trained['model'])


@pytest.mark.parametrize('judge', gin_resolve.files('judges'))
def test_judge_accuracy_traces(judge):
  choice = Choice('judge_accuracy', 't5_1_1_large', 'tldr', judge)
  arguments = gin_resolve.resolve(
    choice,
    [
      "MODEL_DIR = '/accuracy'",
      "JUDGE_CHECKPOINT_PATH = '/judge'",
    ],
  )
  batch = gin_resolve.batch_of(arguments['dataset'](), 8)
  bound = gin.get_bindings('judges.LearnedJudge')
  judged = jax.eval_shape(
    bound['judge'], bound['model'].abstract_params, batch.completions
  )
  assert judged.preference.shape == (8,)
  assert arguments['judges'].keys() == {'judge'}


@pytest.mark.parametrize(
  ('run', 'given'),
  [
    ('convert', ('INITIAL_CHECKPOINT_PATH', 'OUTPUT_DIR', 'OUTPUT_FORMAT')),
    (
      'export_lora',
      (
        'INITIAL_CHECKPOINT_PATH',
        'REFERENCE_CHECKPOINT_PATH',
        'OUTPUT_DIR',
        'OUTPUT_FORMAT',
      ),
    ),
  ],
)
def test_converters_resolve(run, given):
  choice = Choice(run, 't5_1_1_large', '')
  arguments = gin_resolve.resolve(choice, [f"{name} = '/x'" for name in given])
  assert jax.tree.leaves(arguments['model'].abstract_params)


@pytest.mark.slow
def test_infer_traces():
  arguments = gin_resolve.resolve(
    Choice('infer', 'mistral_7b', 'tldr'),
    [
      "MODEL_DIR = '/run'",
      "CHECKPOINT_PATH = '/policy'",
      "REFERENCE_CHECKPOINT_PATH = '/reference'",
      'MIXTURE_COEFS = (0.0, 0.5)',
    ],
  )
  model, sampler = arguments['model'], arguments['sampler']
  dataset = arguments['prompts'].task()
  dataset_lib.check_vocabulary(dataset, model.config.vocab_size)

  def draw(params, prompts, rng):
    context = model.encode(params, prompts)
    return mixture.sample(
      model,
      params,
      params,
      (context, context),
      rng,
      mixture_coefs=arguments['mixture_coefs'],
      **dataclasses.asdict(sampler),
    )

  drawn = jax.eval_shape(
    draw,
    model.abstract_params,
    gin_resolve.batch_of(dataset, arguments['batch_size']),
    jax.eval_shape(jax.random.key, 0),
  )
  assert drawn.tokens.ids.shape == (64, 2, 128)


def test_preview_reads_an_example():
  name = "MIXTURE_OR_TASK_NAME = 'mini_tldr_pairs'"
  arguments = gin_resolve.resolve(
    Choice('preview', 't5_tiny', 'mini_tldr'), [name]
  )
  assert arguments['dataset']().rows([(0, 0)]).preference.shape == (1,)


@pytest.mark.parametrize(
  'choice',
  [
    Choice('online', 't5_tiny', 'mini_tldr', 'comparator', 'ipo_md'),
    Choice('online', 'decoder_tiny', 'mini_tldr', 'likelihood', 'nash_ema'),
    Choice('online', 't5_tiny', 'mini_tldr', 'indifferent', 'ipo'),
    Choice('offline', 't5_tiny', 'ultrafeedback:rewards', 'likelihood', 'nca'),
    Choice('judge', 't5_tiny', 'mini_tldr', 'comparator'),
    Choice('judge', 't5_tiny', 'mini_tldr', 'reward_model'),
    Choice('supervised', 'decoder_tiny', 'mini_tldr'),
  ],
  ids=str,
)
def test_precompile_describes_the_run(choice):
  """The batch has the shapes of the data, and each phase has work."""
  choice = dataclasses.replace(choice, overlay='runs/precompile')
  gin_resolve.resolve(choice, [*choice.given, "TOPOLOGY = 'v5e:2x4'"])
  run = gin.get_bindings('training.train')
  mesh = sharding.make_mesh((1, -1, 1))
  batch = precompile.abstract_batch(run, 8, 4, mesh)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(batch) == shapes(gin_resolve.batch_of(run['dataset'](), 8))
  optimizer = run['optimizer'](run['model'].logical_axes)
  state = state_lib.abstract_state(mesh, run['model'], optimizer, run['start'])
  work = precompile.work_of(run, state, batch, mesh)
  expected = {'log_probs', 'backward'}
  if choice.run == 'online':
    expected |= {'encode', 'decode', 'judge'}
  if choice.judge and not gin_resolve.judge(choice.judge).has_params:
    expected.remove('judge')
  assert {name for name, w in work.items() if w.flops} == expected
  assert work['update'].bytes > 0


def test_every_run_file_has_a_test():
  """Every run file has a test in this module or in `combinations_test`."""
  tested = {
    'convert',
    'export_lora',
    'game',
    'infer',
    'judge',
    'judge_accuracy',
    'offline',
    'offline_precomputed',
    'online',
    'precompile',
    'preview',
    'reference_log_probs',
    'side_by_side',
    'side_by_side_cyclic',
    'side_by_side_mini_tldr',
    'side_by_side_pairwise',
    'side_by_side_truth',
    'supervised',
  }
  assert set(gin_resolve.files('runs')) == tested


@pytest.mark.parametrize(
  ('judge', 'outputs'),
  [('likelihood', 0), ('comparator', 0), ('reward_model', 1)],
)
def test_only_judges_that_read_a_reward_head_have_one(judge, outputs):
  choice = Choice('judge', 'decoder_tiny', 'mini_tldr', judge)
  model = gin_resolve.resolve(choice)['model']
  assert model.config.reward_head == outputs
