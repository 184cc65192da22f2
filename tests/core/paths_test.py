"""Relative paths, ~ and empty paths, wherever a path is taken."""

import functools
import json
import types

import pytest
import seqio

from ipo_md.algorithms import reference_log_probs
from ipo_md.checkpoints import atomic
from ipo_md.checkpoints import locate
from ipo_md.core import paths
from ipo_md.data import dataset as dataset_lib
from ipo_md.data import prompt_format
from ipo_md.data import vocabularies
from ipo_md.evaluation import infer
from ipo_md.evaluation import side_by_side
from ipo_md.games import play
from ipo_md.tpu import precompile
from tasks import preference_files


@pytest.fixture(name='home', autouse=True)
def home_fixture(tmp_path, monkeypatch):
  home = tmp_path / 'home'
  home.mkdir()
  monkeypatch.setenv('HOME', str(home))
  monkeypatch.chdir(home)
  return home


def new_directory(path):
  with atomic.new_directory(path) as directory:
    (directory / 'x').write_text('')


def prompts(path):
  found = infer.Prompts(
    prompts_file=path,
    task=lambda: None,
    vocabulary=seqio.ByteVocabulary,
    prompt_format=prompt_format.PromptFormat(),
    task_feature_lengths={'inputs': 16},
  )
  found.inputs()
  return found.load()


def cached(path):
  return dataset_lib.load(
    mixture_or_task_name='mini_tldr_sft',
    task_feature_lengths={'inputs': 74, 'targets': 36},
    split='validation',
    prompt_format=prompt_format.PromptFormat(suffix=(1,)),
    cache_dir=path,
    module='tasks.mini_tldr.tasks',
  )


def preferences(path):
  name = preference_files.supervised(files={'train': path})
  source = seqio.TaskRegistry.get(name).source
  return source.list_shards('train')


def any_call(function, parameter, names=()):
  """Calls a function of which nothing is reached but the check of a path."""
  return lambda path: function(
    **{parameter: path} | dict.fromkeys(names, types.SimpleNamespace())
  )


GAME = [
  'seed',
  'game',
  'step',
  'loss',
  'mixture_coefs',
  'tau',
  'optimizer',
  'train_steps',
  'batch_size',
  'start_stddev',
  'starts',
]
SCORES = [
  'reference_checkpoint_path',
  'model',
  'dataset',
  'batch_size',
  'mesh_shape',
]


@pytest.mark.parametrize('path', ['', ' ', None])
@pytest.mark.parametrize(
  ('name', 'take'),
  [
    ('OUTPUT_DIR', new_directory),
    ('CHECKPOINT_PATH', lambda p: locate.detect(p, 'CHECKPOINT_PATH')),
    ('TRAIN_FILE', preferences),
    (
      'TOKENIZER_PATH',
      lambda p: vocabularies.tokenizer_vocabulary(path=p, eos_id=0),
    ),
    (
      'REFERENCE_LOG_PROBS',
      any_call(reference_log_probs.attached, 'path', ['dataset']),
    ),
    (
      'REFERENCE_LOG_PROBS',
      any_call(reference_log_probs.compute, 'path', SCORES),
    ),
    ('MODEL_DIR', any_call(play.play, 'model_dir', GAME)),
    ('MODEL_DIR', any_call(precompile.precompile, 'model_dir', ['topology'])),
  ],
)
def test_what_is_no_path_names_the_macro(name, take, path):
  with pytest.raises(ValueError, match=f'{name}.* has to be a path'):
    take(path)


@pytest.mark.parametrize(
  ('name', 'take'), [('PROMPTS_FILE', prompts), ('CACHE_DIR', cached)]
)
def test_an_empty_path_is_not_none(name, take, home):
  with pytest.raises(ValueError, match=f'{name} is empty'):
    take('')
  assert not any(home.iterdir())


def test_policies_name_the_empty_path():
  call = functools.partial(
    side_by_side.side_by_side,
    model_dir='out',
    seed=0,
    mesh_shape=(1, -1, 1),
    model=None,
    reference_checkpoint_path='x',
    prompts=None,
    sampler=None,
    judges={'a': None},
  )
  with pytest.raises(ValueError, match=r"POLICIES\['b'\] is empty"):
    call(policies={'a': 'x', 'b': ''})


@pytest.mark.parametrize('prefix', ['~/', './', 'sub/../', ''])
def test_relative_paths_and_home(home, prefix):
  (home / 'sub').mkdir()
  new_directory(f'{prefix}made')
  assert (home / 'made' / 'x').exists()
  (home / 'prompts.txt').write_text('a\n')
  assert len(prompts(f'{prefix}prompts.txt')) == 1
  row = {'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}
  (home / 'rows.jsonl').write_text(json.dumps(row) + '\n')
  assert preferences(f'{prefix}rows.jsonl') == [str(home / 'rows.jsonl')]
  checkpoint = home / 'run/checkpoints/3'
  (checkpoint / 'default').mkdir(parents=True)
  (checkpoint / 'default' / 'manifest.ocdbt').write_text('')
  metrics = json.dumps({'step': 3, 'win_rate': 0.5}) + '\n'
  (home / 'run/metrics.jsonl').write_text(metrics)
  for best in ('', ':best'):
    _, found = locate.detect(f'{prefix}run{best}', 'X')
    assert str(found) == str(checkpoint / 'default')
  assert sorted(p.name for p in home.iterdir()) == [
    'made',
    'prompts.txt',
    'rows.jsonl',
    'run',
    'sub',
  ]


@pytest.mark.parametrize(
  'path', ['gs://b/x', 's3://b/~/x', '/a/b', '/a/b:best']
)
def test_absolute_paths_and_buckets_stay(path):
  assert paths.absolute(path, 'X') == path


def test_the_home_of_nobody_is_refused():
  with pytest.raises(ValueError, match='MODEL_DIR ~nobodyx/q: .* user nobodyx'):
    paths.absolute('~nobodyx/q', 'MODEL_DIR')
