"""Tests of preference files on real rows, PandaLM's human judgements.

PANDALM_PATH names pandalm_test.jsonl.gz, rows of

  instruction, input, completions[{model, response, win_rate}],
  pairs[[model, model, label, label, label]]   0 for a tie, else the better one

of WeOpenML/PandaLM. These tests are skipped if it is not set.
"""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import seqio

from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from tasks import preference_files

_ROOT = str(pathlib.Path(__file__).parents[2])
_LENGTHS = {'inputs': 96, 'targets': 64}
_SIZES = {
  'TRAIN_STEPS': 4,
  'BATCH_SIZE': 8,
  'EVAL_BATCH_SIZE': 8,
  'EVAL_EXAMPLES': 8,
  'TASK_FEATURE_LENGTHS': _LENGTHS,
}
_GIN = """
from __gin__ import dynamic_registration
import seqio
from ipo_md import data
VOCABULARY = @seqio.ByteVocabulary()
data.load.vocabulary = %VOCABULARY
data.vocabulary.vocabulary = %VOCABULARY
"""

pytestmark = pytest.mark.skipif(
  'PANDALM_PATH' not in os.environ, reason='PANDALM_PATH is not set'
)


def _prompt(row):
  return '\n'.join(part for part in (row['instruction'], row['input']) if part)


def _scored(row):
  """Scores a row: the mean win (1) or tie (1/2) over labels and opponents."""
  wins = {c['model']: [] for c in row['completions']}
  for first, second, *labels in row['pairs']:
    for label in labels:
      wins[first].append({0: 0.5, 1: 1.0, 2: 0.0}[label])
      wins[second].append({0: 0.5, 1: 0.0, 2: 1.0}[label])
  return {
    'prompt': _prompt(row),
    'completions': [_response(c) for c in row['completions']],
    'scores': [float(np.mean(wins[c['model']])) for c in row['completions']],
  }


def _response(completion):
  """Returns a response as text. In one row it is the JSON value true."""
  return str(completion['response'])


def _pairs(row):
  """Yields the pairs on which a majority agrees."""
  text = {c['model']: _response(c) for c in row['completions']}
  for first, second, *labels in row['pairs']:
    lead = labels.count(1) - labels.count(2)
    if lead:
      chosen, rejected = (first, second) if lead > 0 else (second, first)
      yield {
        'prompt': _prompt(row),
        'chosen': text[chosen],
        'rejected': text[rejected],
      }


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Paths of files of scored rows and of pairs, and their rows."""
  folder = tmp_path_factory.mktemp('pandalm')
  with gzip.open(os.environ['PANDALM_PATH'], 'rt') as file:
    rows = [json.loads(line) for line in file]
  made = {
    'scored': [_scored(row) for row in rows],
    'pairs': [pair for row in rows for pair in _pairs(row)],
  }
  for name, lines in made.items():
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (folder / f'{name}.jsonl').write_text(text)
  return {name: str(folder / f'{name}.jsonl') for name in made} | {
    'rows': rows,
    'made': made,
  }


def test_rewards_are_the_rows_own_win_rates(files):
  for row, scored in zip(files['rows'], files['made']['scored'], strict=True):
    expected = [c['win_rate'] for c in row['completions']]
    np.testing.assert_allclose(scored['scores'], expected, atol=1e-3)


def test_examples(files):
  name = preference_files.rewards(files={'train': files['scored']}, k=5)
  dataset = dataset_lib.load(
    mixture_or_task_name=name,
    task_feature_lengths=_LENGTHS,
    split='train',
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
    vocabulary=seqio.ByteVocabulary(),
  )
  assert len(dataset) == len(files['rows'])
  for i, scored in enumerate(files['made']['scored']):
    row = dataset.rows([(0, i)])
    k = len(scored['scores'])
    assert row.completion_mask.sum() == k
    np.testing.assert_allclose(row.rewards[0, :k], scored['scores'], rtol=1e-6)


def _train(folder, run, task, *gin_files, **macros):
  """Trains a tiny model for four updates and returns its MODEL_DIR."""
  macros = _SIZES | {'MODEL_DIR': repr(str(folder / task))} | macros
  _run(folder, run, *gin_files, **macros)
  assert (folder / task / 'COMPLETED').exists()
  return macros['MODEL_DIR']


def _run(folder, run, *gin_files, **macros):
  vocabulary = folder / 'vocabulary.gin'
  vocabulary.write_text(_GIN)
  gin_files = [
    f'gin/runs/{run}.gin',
    'gin/models/t5_tiny.gin',
    'gin/tasks/preference_files.gin',
    *gin_files,
    str(vocabulary),
  ]
  subprocess.run(
    [
      sys.executable,
      '-m',
      'ipo_md',
      *(f'--gin_file={path}' for path in gin_files),
      *(f'--gin.{n}={v}' for n, v in macros.items() if v is not None),
    ],
    cwd=_ROOT,
    check=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
  )


def test_the_chain(files, tmp_path):
  """Trains a policy, a judge, IPO and DPO on pairs, and NCA on rewards."""
  pairs = {'TRAIN_FILE': repr(files['pairs'])}
  pairs['VALIDATION_FILE'] = pairs['TRAIN_FILE']
  scored = {
    'TRAIN_FILE': repr(files['scored']),
    'VALIDATION_FILE': repr(files['scored']),
    'PREFERENCE_TASK': '@preference_files.rewards()',
    'MAX_COMPLETIONS': 5,
  }
  judge_gin = 'gin/judges/reward_model.gin'
  policy = _train(tmp_path, 'supervised', 'supervised', **pairs)
  judge_length = {'JUDGE_LENGTH': 512}
  judge = _train(tmp_path, 'judge', 'judge', judge_gin, **pairs, **judge_length)
  start = judge_length | {
    'INITIAL_CHECKPOINT_PATH': policy,
    'JUDGE_CHECKPOINT_PATH': judge,
    'MAX_NEW_TOKENS': 16,
  }
  for name, rows in (('ipo', pairs), ('dpo', pairs), ('nca', scored)):
    algorithm = f'gin/algorithms/{name}.gin'
    _train(tmp_path, 'offline', name, judge_gin, algorithm, **rows, **start)


def test_precomputed_log_probs(files, tmp_path):
  """Trains IPO on precomputed log-probabilities without a reference."""
  pairs = {'TRAIN_FILE': repr(files['pairs'])}
  pairs['VALIDATION_FILE'] = pairs['TRAIN_FILE']
  policy = _train(tmp_path, 'supervised', 'supervised', **pairs)
  written = {'REFERENCE_LOG_PROBS': repr(str(tmp_path / 'log_probs.npz'))}
  _run(
    tmp_path,
    'reference_log_probs',
    BATCH_SIZE=16,
    TASK_FEATURE_LENGTHS=_LENGTHS,
    REFERENCE_CHECKPOINT_PATH=policy,
    **pairs,
    **written,
  )
  _train(
    tmp_path,
    'offline_precomputed',
    'ipo',
    'gin/algorithms/ipo.gin',
    INITIAL_CHECKPOINT_PATH=policy,
    EVAL_BATCH_SIZE=None,
    EVAL_EXAMPLES=None,
    **pairs,
    **written,
  )
