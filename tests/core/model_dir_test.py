"""What a MODEL_DIR holds against what a run brings; who may write to it."""

import json

import pytest

from ipo_md.core import identity
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.core import ownership
from ipo_md.core import paths
from ipo_md.core import private_apis

CONFIG = 'TAU = 0.1\n'


def inputs(**digests) -> dict[str, identity.Identity]:
  return {
    name: identity.Identity(path=f'/{name}', digest=digest)
    for name, digest in digests.items()
  }


@pytest.mark.parametrize(
  'result', ['COMPLETED', 'results.json', 'completions.jsonl', 'checkpoints/2']
)
def test_changed_inputs_are_refused_once_there_are_results(tmp_path, result):
  directory = str(tmp_path)
  with model_dir_lib.claimed(directory, CONFIG, inputs=inputs(A='1', B='1')):
    pass
  # Nothing was saved: the inputs may be corrected.
  with model_dir_lib.claimed(directory, CONFIG, inputs=inputs(A='2', B='1')):
    (tmp_path / result).mkdir(parents=True)
  model_dir_lib.check(directory, CONFIG, inputs=inputs(A='2', B='1'))
  message = r'(?s)ACCEPT_CHANGED_INPUTS.*\n  A: /A \(2\) then, /A \(3\) now$'
  changed = inputs(A='3', B='1')
  with pytest.raises(ValueError, match=message):
    model_dir_lib.check(directory, CONFIG, inputs=changed)
  with (
    pytest.raises(ValueError, match=message),
    model_dir_lib.claimed(directory, CONFIG, inputs=changed),
  ):
    pass
  assert not (tmp_path / ownership.FILE).exists()


def test_a_change_is_accepted_knowingly_and_then_known(tmp_path, capsys):
  directory = str(tmp_path)
  with model_dir_lib.claimed(directory, CONFIG, inputs=inputs(A='1', B='1')):
    (tmp_path / 'completions.jsonl').write_text('')
  accept = {'accept_changed_inputs': True, 'inputs': inputs(A='2')}
  model_dir_lib.check(directory, CONFIG, **accept)
  assert 'A: /A (1) then, /A (2) now' in capsys.readouterr().out
  with model_dir_lib.claimed(directory, CONFIG, **accept):
    pass
  assert not capsys.readouterr().out  # It is said once.
  known = json.loads((tmp_path / identity.FILE).read_text())
  assert {name: item['digest'] for name, item in known.items()} == {
    'A': '2',
    'B': '1',  # removed since, but not forgotten
  }
  model_dir_lib.check(directory, CONFIG, inputs=inputs(A='2'))
  with pytest.raises(ValueError, match='B: /B'):
    model_dir_lib.check(directory, CONFIG, inputs=inputs(B='2'))


@pytest.mark.parametrize('value', [None, 0, 'True', 1.0])
def test_the_option_is_a_boolean(tmp_path, value):
  with pytest.raises(ValueError, match='ACCEPT_CHANGED_INPUTS = '):
    model_dir_lib.check(str(tmp_path), CONFIG, accept_changed_inputs=value)


def test_a_run_of_an_earlier_version_has_no_known_inputs(tmp_path):
  model_dir_lib.claim(str(tmp_path), CONFIG)
  (tmp_path / 'COMPLETED').write_text('0')
  model_dir_lib.check(str(tmp_path), CONFIG, inputs=inputs(A='1'))


def test_bindings_are_one_a_line_whatever_gin_puts_between_them():
  config = (
    '# Macros:\n# ====\nA = 1\nB = \\\n    (1,\n     2)\n\n'
    '# Parameters for x.y:\n# ====\nx.y.a = %A\n'
  )
  assert model_dir_lib.bindings(config) == ['A = 1', 'B = (1, 2)', 'x.y.a = %A']


@pytest.mark.parametrize('source', ['from ipo_md.core ', 'from mine ', ''])
def test_another_tracker_is_no_other_run(tmp_path, source):
  """Neither its own settings nor its import, even of a module of the user's."""
  plain = (
    'from ipo_md import training\n'
    'RUN = @training.train\nTAU = 0.1\nTRACKER = None\n'
    'training.train.model = @my_model\n'
    'training.train.tracker = %TRACKER\n'
  )
  tracked = (
    f'{source}import trackers\n'
    + plain.replace('None', '@a/trackers.Wandb()')
    + "PROJECT = 'x'\ntrackers.Wandb.project = %PROJECT\n"
  )
  model_dir_lib.claim(str(tmp_path), plain)
  (tmp_path / 'COMPLETED').write_text('1')
  model_dir_lib.claim(str(tmp_path), tracked)
  model_dir_lib.claim(str(tmp_path), tracked.replace("'x'", "'y'"))
  # What the run itself uses as well may not change.
  shared = tracked.replace('@my_model', '@trackers.model')
  model_dir_lib.claim(str(tmp_path / 'b'), shared)
  (tmp_path / 'b' / 'COMPLETED').write_text('1')
  with pytest.raises(ValueError, match=f'-{source}import trackers'):
    model_dir_lib.claim(
      str(tmp_path / 'b'),
      shared.replace(f'{source}import', 'from other import'),
    )
  # Nor may macros that the run uses as well.
  both = tracked.replace('@my_model', '%PROJECT')
  model_dir_lib.claim(str(tmp_path / 'c'), both)
  (tmp_path / 'c' / 'COMPLETED').write_text('1')
  with pytest.raises(ValueError, match="-PROJECT = 'x'"):
    model_dir_lib.claim(str(tmp_path / 'c'), both.replace("'x'", "'y'"))


def test_check_writes_nothing(tmp_path):
  model_dir_lib.check(str(tmp_path / 'new'), CONFIG, inputs=inputs(A='1'))
  assert not any(tmp_path.iterdir())


def test_a_run_that_lives_is_named_before_anything_is_read(tmp_path):
  with model_dir_lib.claimed(str(tmp_path), CONFIG):
    before = sorted(p.name for p in tmp_path.iterdir())
    for config in (CONFIG, 'TAU = 0.2\n'):
      with pytest.raises(ValueError, match='belongs to a run that lives'):
        model_dir_lib.check(str(tmp_path), config)
      with (
        pytest.raises(ValueError, match='belongs to a run that lives'),
        model_dir_lib.claimed(str(tmp_path), config),
      ):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert (tmp_path / 'config.gin').read_text() == CONFIG


def test_metrics_of_another_run_without_a_checkpoint_are_set_aside(
  tmp_path, capsys
):
  written = {
    'config.gin': CONFIG,
    'metrics.jsonl': '{"step": 25, "loss": 1.0}\n',
    'performance.jsonl': '{"step": 25}\n',
    'tensorboard/events': 'x',
    'profile/trace': 'x',
    'versions.json': '{}',
    'model/tokenizer.json': '{}',
  }
  for name, text in written.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  (tmp_path / 'samples').mkdir()  # found again by what they were made of
  model_dir_lib.claim(str(tmp_path), CONFIG)  # the same run goes on
  assert (tmp_path / 'metrics.jsonl').exists()
  for n in (1, 2):
    model_dir_lib.claim(str(tmp_path), f'TAU = {n}\n')
    assert str(tmp_path / 'earlier' / str(n)) in capsys.readouterr().out
    assert not (tmp_path / 'metrics.jsonl').exists()
    assert not (tmp_path / 'tensorboard').exists()
    assert (tmp_path / 'samples').exists()
    (tmp_path / 'metrics.jsonl').write_text(f'{n}\n')
  for name, text in written.items():
    assert (tmp_path / 'earlier/1' / name).read_text() == text
  assert (tmp_path / 'earlier/2/metrics.jsonl').read_text() == '1\n'
  assert (tmp_path / 'config.gin').read_text() == 'TAU = 2\n'


def test_a_shorter_run_without_a_checkpoint_has_its_own_curve(tmp_path):
  """TRAIN_STEPS may change on resume, but nothing is resumed here."""
  config = (
    'from ipo_md import training\nTRAIN_STEPS = 30\n'
    'training.Schedule.train_steps = %TRAIN_STEPS\n'
  )
  model_dir_lib.claim(str(tmp_path), config)
  (tmp_path / 'metrics.jsonl').write_text('{"step": 25}\n')
  model_dir_lib.claim(str(tmp_path), config.replace('30', '4'))
  assert not (tmp_path / 'metrics.jsonl').exists()


@pytest.mark.parametrize(
  ('completed', 'checkpoints', 'steps', 'refused'),
  [
    ('4', (2, 4), 2, True),
    ('4', (2, 4), 4, False),
    ('4', (2, 4), 6, False),
    (None, (2, 4), 3, True),  # killed between the checkpoint and its end
    (None, (2, 4), 4, False),
    ('4', (), 2, True),  # its checkpoints were removed
    (None, (), 0, False),
  ],
)
def test_fewer_updates_than_are_done_are_refused(
  tmp_path, completed, checkpoints, steps, refused
):
  if completed:
    (tmp_path / 'COMPLETED').write_text(completed + '\n')
  for step in checkpoints:
    (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
  if refused:
    message = f'TRAIN_STEPS {steps} is less than the 4 updates'
    with pytest.raises(ValueError, match=message):
      model_dir_lib.check_steps(str(tmp_path), steps)
  else:
    model_dir_lib.check_steps(str(tmp_path), steps)


def test_what_the_first_process_refuses_all_refuse(tmp_path, monkeypatch):
  said = []

  def exchange(text):
    said.append(text)
    return ['MODEL_DIR /x holds another run', text]

  monkeypatch.setattr(private_apis, 'process_id', lambda: 1)
  monkeypatch.setattr(private_apis, 'process_count', lambda: 2)
  monkeypatch.setattr(private_apis, 'exchange', exchange)
  with (
    pytest.raises(ValueError, match='/x holds another run'),
    model_dir_lib.claimed(str(tmp_path), CONFIG),
  ):
    pass
  assert not any(tmp_path.iterdir())  # which the first one alone writes to
  assert said == ['']


@pytest.mark.parametrize('path', ['', '   ', None, 3, ()])
def test_what_is_no_path_names_the_macro(path):
  with pytest.raises(ValueError, match='CACHE_DIR .*has to be a path'):
    paths.absolute(path, 'CACHE_DIR')
