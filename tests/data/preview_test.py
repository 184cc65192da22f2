"""Tests of the preview run through its gin file."""

import json
import pathlib
import re

import gin
import numpy as np
import pytest
import tensorflow_datasets as tfds

from ipo_md.data import preview

_ROOT = str(pathlib.Path(__file__).parents[2])
_VOCABULARY = f"""
from __gin__ import dynamic_registration
import seqio
VOCABULARY = @seqio.SentencePieceVocabulary()
seqio.SentencePieceVocabulary.sentencepiece_model_file = (
  '{_ROOT}/tasks/mini_tldr/mini_tldr.model')
"""


@pytest.fixture
def run(tmp_path):
  """A function that previews a task with the vocabulary of mini_tldr."""
  vocabulary = tmp_path / 'vocabulary.gin'
  vocabulary.write_text(_VOCABULARY)

  def run(task, *bindings):
    gin.add_config_file_search_path(_ROOT)
    gin.parse_config_files_and_bindings(
      [
        'gin/runs/preview.gin',
        'gin/models/t5_tiny.gin',
        f'gin/tasks/{task}.gin',
        str(vocabulary),
      ],
      bindings,
    )
    gin.query_parameter('RUN/gin.macro.value').scoped_configurable_fn()

  gin.clear_config()
  yield run
  gin.clear_config()


def test_xsum(run, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('XSUM_DIR', str(tmp_path))
  rows = [
    {'document': 'somebody broke my oven. ' * n, 'summary': 'a', 'id': str(n)}
    for n in (1, 300)
  ]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (tmp_path / 'validation.jsonl').write_text(text)
  run('xsum', "MIXTURE_OR_TASK_NAME = 'xsum_prompts'", "SPLIT = 'validation'")
  out = capsys.readouterr().out
  assert re.search(r'prompts_cut +1\n', out)
  assert 'xsum_prompts, example 1 of 2' in out
  # This vocabulary lacks the capitals of 'POST:' and 'TL;DR:'.
  assert 'somebody broke my oven.' in out
  assert 'completion 1, 2 tokens: a</s>' in out


def test_preference_files(run, tmp_path, capsys):
  row = {'prompt': 'my dog', 'completions': ['a', 'b'], 'scores': [1, 2.5]}
  path = tmp_path / 'scored.jsonl'
  path.write_text(json.dumps(row) + '\n')
  run(
    'preference_files',
    f"TRAIN_FILE = '{path}'",
    f"VALIDATION_FILE = '{path}'",
    "TASK_FEATURE_LENGTHS = {'inputs': 16, 'targets': 8}",
    'PREFERENCE_TASK = @preference_files.rewards()',
    'MIXTURE_OR_TASK_NAME = %PREFERENCE_TASK',
    'MAX_COMPLETIONS = 3',
  )
  out = capsys.readouterr().out
  assert 'completion 2, reward 2.5, 3 tokens: b</s>' in out
  assert re.search(r'prompt, \d+ tokens: my dog</s>', out)
  assert re.search(r'completions_empty +0\n', out)
  assert 'completion 3: absent' in out


@pytest.mark.parametrize(
  ('task', 'name'),
  [('tldr', 'tldr_preference'), ('ultrafeedback', 'ultrafeedback_rewards')],
)
def test_absent_data(run, tmp_path, monkeypatch, task, name):
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
  with pytest.raises(ValueError, match='make it with `python -m tasks.build'):
    run(task, f"MIXTURE_OR_TASK_NAME = '{name}'")


def test_histogram():
  lines = preview.histogram(np.array([1, 2, 2, 3, 24, 25, 30]), 24).split('\n')
  assert lines[0].split()[:4] == ['1', 'to', '2', '3']
  assert lines[-2].split()[:4] == ['over', '24:', 'cut', '2']
  assert 'mean 12.4, longest 30' in lines[-1]
  counts = [int(line.split()[3]) for line in lines[:-1]]
  assert sum(counts) == 7
  assert 'longest 0' in preview.histogram(np.zeros(3, int), 24)
