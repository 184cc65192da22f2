"""Runs of the command line with judges on the host."""

import importlib
import json
import sys

from absl import flags
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ipo_md import __main__ as main
from ipo_md.checkpoints import manager
from ipo_md.core import gin_config
from ipo_md.core import metrics
from ipo_md.core import types
from ipo_md.models import model as model_lib
from ipo_md.models import t5
from tasks.mini_tldr import tasks
from tests import command_line
from tests.judges import tiny_reward_model

pytestmark = pytest.mark.slow

MINE = """
from __gin__ import dynamic_registration
from ipo_md import judges
import my_judges

include 'gin/judges/{judge}.gin'
{bindings}
"""
CODE = """
calls = []


def letters(prompts, completions):
  calls.append((list(prompts), [list(row) for row in completions]))
  return [[float(text.count('e')) for text in row] for row in completions]


def first_wins(prompts, completions):
  return [float(a.count('e') > b.count('e')) for a, b in completions]


def broken(prompts, completions):
  return [[1.0] * 2] * 3
"""
REWARDS = ['FUNCTION = @my_judges.letters']
PREFERENCES = [
  'FUNCTION = @my_judges.first_wins',
  'JUDGE = @judges.PreferenceFunction()',
]


@pytest.fixture(name='my_judges', scope='module')
def my_judges_fixture(tmp_path_factory):
  """A module of a user's, outside of the package."""
  folder = tmp_path_factory.mktemp('code')
  (folder / 'my_judges.py').write_text(CODE)
  sys.path.insert(0, str(folder))
  yield importlib.import_module('my_judges')
  sys.path.remove(str(folder))
  del sys.modules['my_judges']


@pytest.fixture(name='run')
def run_fixture(monkeypatch, tmp_path, my_judges):
  """Runs gin files with a policy of one layer; further bindings by name."""
  monkeypatch.setattr(main, 'start_processes', lambda: None)
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])
  model = model_lib.Model(
    lambda rngs: t5.T5(
      rngs,
      vocab_size=tasks.VOCABULARY.vocab_size,
      mlp_activations=('gelu', 'linear'),
      logits_via_embedding=False,
      dropout_rate=0.0,
      scan=False,
      **command_line.SIZES,
    )
  )
  params = model.init(jax.random.key(0))
  state = types.TrainState(step=jnp.int32(1), params=params, opt_state=())
  policy = str(tmp_path / 'policy')
  with manager.open_manager(policy, keep=manager.Keep()) as saved:
    manager.save(saved, state, tasks.VOCABULARY)
    manager.wait(saved)

  def run(name, files, judge, lines=(), **changes):
    mine = tmp_path / f'{name}.gin'
    mine.write_text(MINE.format(judge=judge, bindings='\n'.join(lines)))
    bindings = {
      'MODEL_DIR': f"'{tmp_path / name}'",
      **{
        f'models.T5.{size}': value for size, value in command_line.SIZES.items()
      },
    } | changes
    gin.clear_config()
    for flag in ('gin_file', 'gin_bindings'):
      flags.FLAGS[flag].unparse()
    first, *after = files
    paths = [
      f'gin/runs/{first}.gin',
      'gin/models/t5_tiny.gin',
      'gin/tasks/mini_tldr.gin',
      str(mine),
      *(f'gin/{file}.gin' for file in after),
    ]
    args = [f'--gin_file={path}' for path in paths]
    args += [f'--gin.{key}={value}' for key, value in bindings.items()]
    flags.FLAGS(gin_config.rewrite_gin_args(['ipo_md', *args]))
    main.run(['ipo_md'])
    return tmp_path / name

  my_judges.calls.clear()
  yield run
  gin.clear_config()


@pytest.fixture(name='online')
def online_fixture(run, tmp_path):
  def online(name, algorithm, judge, lines=(), **changes):
    folder = run(
      name,
      ('online', f'algorithms/{algorithm}', 'host_judge'),
      judge,
      lines,
      **{
        'INITIAL_CHECKPOINT_PATH': f"'{tmp_path / 'policy'}'",
        'MAX_NEW_TOKENS': 8,
        'TRAIN_STEPS': 2,
        'BATCH_SIZE': 8,
        'LOG_PERIOD': 1,
        'CHECKPOINT_PERIOD': 0,
        'data.load.split': "'validation'",
      }
      | changes,
    )
    return metrics.read_metrics(str(folder))

  return online


@pytest.fixture(name='reward_model')
def reward_model_fixture(tmp_path):
  return tiny_reward_model.write(tmp_path / 'reward_model', 'chat')


def test_a_function_gives_preferences_to_an_online_run(online, my_judges):
  found = online('rewards', 'ipo_md', 'function', REWARDS)
  assert 0 <= found[1]['preference'] <= 1 and found[1]['judge_seconds'] >= 0
  (prompts, rows), *others = my_judges.calls
  assert len(others) == 1 and len(prompts) == 8 and len(rows[0]) == 2
  assert all(prompts)
  online('preferences', 'ipo', 'function', PREFERENCES)


def test_a_function_gives_rewards_to_an_online_run(online, my_judges):
  found = online('nca', 'nca', 'function', REWARDS)
  _, rows = my_judges.calls[0]
  assert {len(row) for row in rows} == {4}
  counts = [text.count('e') for row in rows for text in row]
  np.testing.assert_allclose(found[1]['rewards'], np.mean(counts), rtol=1e-5)


def test_what_a_function_returns_is_checked_in_a_run(online):
  with pytest.raises(ValueError, match=r'FUNCTION broken.*\(8, 2\).*\(3, 2\)'):
    online('broken', 'ipo', 'function', ['FUNCTION = @my_judges.broken'])
  with pytest.raises(ValueError, match='MIXTURE_COEFS.*2 completions'):
    online('four', 'nca', 'function', PREFERENCES)


def test_one_path_is_all_that_a_language_model_needs(run, tmp_path):
  folder = tiny_reward_model.write_language_model(tmp_path / 'lm', 'chat')
  accuracy = run(
    'accuracy',
    ('judge_accuracy',),
    'hf_likelihood',
    JUDGE_CHECKPOINT_PATH=f"'{folder}'",
    EVAL_EXAMPLES=16,
    EVAL_BATCH_SIZE=8,
  )
  results = json.loads((accuracy / 'results.json').read_text())
  assert results['pairs'] == 16
  assert results['order_consistency']['held_out_pairs']['judge'][0] > 0.9


def test_one_path_is_all_that_a_reward_model_needs(
  online, reward_model, run, tmp_path
):
  path = {'JUDGE_CHECKPOINT_PATH': f"'{reward_model}'"}
  found = online('reward_model', 'ipo_md', 'hf_reward_model', **path)
  assert 0 < found[2]['preference'] < 1
  with pytest.raises(ValueError, match='JUDGE_MAX_LENGTH.*0.*at least 1'):
    online('x', 'ipo', 'hf_reward_model', **path, JUDGE_MAX_LENGTH=0)

  accuracy = run(
    'accuracy',
    ('judge_accuracy',),
    'hf_reward_model',
    **path,
    EVAL_EXAMPLES=16,
    EVAL_BATCH_SIZE=8,
  )
  results = json.loads((accuracy / 'results.json').read_text())
  assert results['pairs'] == 16
  assert results['order_consistency']['held_out_pairs']['judge'][0] > 0.9

  compared = run(
    'compared',
    ('side_by_side',),
    'hf_reward_model',
    [
      'from ipo_md.evaluation import side_by_side',
      'BEST_OF = @side_by_side.BestOf()',
      'side_by_side.BestOf.n = 3',
      "side_by_side.BestOf.policy = 'start'",
      "side_by_side.BestOf.judge = 'judge'",
    ],
    **path,
    REFERENCE_CHECKPOINT_PATH=f"'{tmp_path / 'policy'}'",
    POLICIES=f"{{'start': '{tmp_path / 'policy'}'}}",
    MAX_NEW_TOKENS=8,
    EVAL_EXAMPLES=8,
    EVAL_BATCH_SIZE=8,
  )
  results = json.loads((compared / 'results.json').read_text())
  assert 'best_of_3' in json.dumps(results)
  inputs = json.loads((compared / 'inputs.json').read_text())
  assert "JUDGES['judge']" in inputs


def test_reward_models_and_functions_are_added(online, reward_model, tmp_path):
  other = tiny_reward_model.write(tmp_path / 'other', 'turns', seed=1)
  lines = [
    "REWARD_JUDGES = {'one': @one/judges.TextRewardModel(),"
    " 'two': @two/judges.TextRewardModel(), 'e': @judges.RewardFunction()}",
    "REWARD_WEIGHTS = {'one': 1.0, 'two': 0.5, 'e': -1.0}",
    "REWARD_SCALES = {'two': (0.5, 2.0)}",
    f"one/judges.TextRewardModel.checkpoint_path = '{reward_model}'",
    f"two/judges.TextRewardModel.checkpoint_path = '{other}'",
    "two/judges.TextRewardModel.text = '<|user|>{text}<|end|>{first}<|end|>'",
    'judges.RewardFunction.function = @my_judges.letters',
  ]
  found = online('weighted', 'nca', 'weighted', lines)
  assert np.isfinite(found[2]['rewards'])
  inputs = json.loads((tmp_path / 'weighted' / 'inputs.json').read_text())
  paths = [item['path'] for item in inputs.values()]
  assert str(reward_model) in paths and str(other) in paths
