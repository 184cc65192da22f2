"""The loop: resume, stop, errors, metrics, on a micro T5 and real tasks."""

import dataclasses
import functools
import inspect
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
from tensorboard.backend.event_processing import event_accumulator

from ipo_md import checkpoints
from ipo_md import judges
from ipo_md.algorithms import iterative_losses
from ipo_md.algorithms import players as players_lib
from ipo_md.algorithms import supervised as supervised_lib
from ipo_md.core import metrics as metrics_lib
from ipo_md.core import model_dir as model_dir_lib
from ipo_md.data import dataset as dataset_lib
from ipo_md.evaluation import infer
from ipo_md.evaluation import side_by_side
from ipo_md.training import config
from ipo_md.training import loop
from tests.training import micro_run

pytestmark = pytest.mark.slow


def tensorboard_texts(model_dir) -> dict[tuple[str, int], str]:
  events = event_accumulator.EventAccumulator(
    str(model_dir / 'tensorboard'), size_guidance={'tensors': 0}
  ).Reload()
  return {
    (tag.split('/')[0], event.step): event.tensor_proto.string_val[0].decode()
    for tag in events.Tags()['tensors']
    if tag.startswith('sample_')
    for event in events.Tensors(tag)
  }


@pytest.fixture(scope='module', name='trained')
def trained_fixture(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('trained')
  micro_run.supervised(path)
  return path


def test_a_finished_run_says_so_and_leaves_what_a_user_expects(trained, capsys):
  assert (trained / 'COMPLETED').read_text() == '4\n'
  assert 'jax' in json.loads((trained / 'versions.json').read_text())
  metrics = metrics_lib.read_metrics(str(trained))
  assert sorted(metrics) == [0, 1, 2, 3, 4]
  assert metrics[0]['data_examples'] == 4096
  assert {'loss', 'grad_norm', 'eval_loss'} <= set(metrics[4])
  lines = (trained / 'performance.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [1, 2, 3, 4]
  assert {'goodput', 'seconds_data', 'seconds_checkpoint'} <= set(
    json.loads(lines[1])
  )
  capsys.readouterr()
  micro_run.supervised(trained)
  assert 'is complete: 4 steps' in capsys.readouterr().out


def test_supervised_resume_is_the_uninterrupted_run(trained, tmp_path):
  """Two steps, then two more, are four: with dropout, bit for bit."""
  micro_run.supervised(tmp_path, 2)
  micro_run.supervised(tmp_path, 4)
  micro_run.assert_equal(
    micro_run.params_of(tmp_path), micro_run.params_of(trained)
  )
  resumed = metrics_lib.read_metrics(str(tmp_path))
  straight = metrics_lib.read_metrics(str(trained))
  for step in straight:
    assert resumed[step] == straight[step]


def test_online_resume_is_the_uninterrupted_run(trained, tmp_path):
  """Over a refresh of the snapshot and between two of the reference."""
  rounds = {
    'loss': functools.partial(iterative_losses.inpo, tau=0.1, eta=0.3),
    'mixture_coefs': (0.5, 1.0),
    'players': players_lib.Players(
      second='snapshot', snapshot_steps=2, reference_steps=3
    ),
  }
  micro_run.online(tmp_path / 'a', trained, trained, **rounds)
  micro_run.online(tmp_path / 'b', trained, trained, 2, **rounds)
  micro_run.online(tmp_path / 'b', trained, trained, 4, **rounds)
  micro_run.assert_equal(
    micro_run.params_of(tmp_path / 'a'), micro_run.params_of(tmp_path / 'b')
  )
  metrics = metrics_lib.read_metrics(str(tmp_path / 'a'))
  assert metrics[0]['eval_kl'] == pytest.approx(0, abs=1e-5)
  assert 0 <= metrics[4]['win_rate'] <= 1
  assert {'chosen_log_prob', 'rejected_log_prob'} <= set(metrics[4])
  shown = tensorboard_texts(tmp_path / 'a')
  assert set(shown) == {(f'sample_{n}', s) for n in range(4) for s in (0, 2, 4)}
  assert re.fullmatch(r'    .+\n\n    .*', shown['sample_0', 4])
  assert metrics_lib.read_metrics(str(tmp_path / 'b')) == metrics


def test_a_run_goes_on_with_another_tracker(trained, tmp_path):
  """What is shown is what is written, and the updates are the same."""

  class Recorder:
    def __init__(self):
      self.scalars, self.ends = {}, []

    def write_hparams(self, hparams):
      del hparams

    def write_scalars(self, step, scalars):
      self.scalars.setdefault(step, {}).update(scalars)

    def write_texts(self, step, texts):
      raise AssertionError('a supervised run shows no texts')

    def close(self):
      self.ends.append('closed')

  class Failing(Recorder):
    def write_scalars(self, step, scalars):
      raise OSError('no network')

  recorder = Recorder()
  micro_run.supervised(tmp_path, 2, tracker=recorder)
  micro_run.supervised(tmp_path, 4, tracker=Failing())
  assert recorder.ends == ['closed']
  written = metrics_lib.read_metrics(str(tmp_path))
  assert written == metrics_lib.read_metrics(str(trained))
  for step in (0, 1, 2):
    assert written[step].items() <= recorder.scalars[step].items()
  assert 'performance/goodput' in recorder.scalars[2]


def test_fewer_updates_than_are_done_are_no_finished_run(tmp_path):
  micro_run.supervised(tmp_path, 4, evaluation=None)
  with pytest.raises(ValueError, match='TRAIN_STEPS 2 is less than the 4'):
    micro_run.supervised(tmp_path, 2, evaluation=None)
  (tmp_path / 'COMPLETED').unlink()
  with pytest.raises(ValueError, match='TRAIN_STEPS 3 is less than the 4'):
    micro_run.supervised(tmp_path, 3, evaluation=None)
  assert not (tmp_path / 'COMPLETED').exists()
  assert not (tmp_path / 'OWNER.json').exists()


def test_a_reference_that_was_trained_on_is_another_one(trained, tmp_path):
  shutil.copytree(trained, tmp_path / 'reference')
  run = functools.partial(
    micro_run.online, tmp_path / 'run', tmp_path / 'reference', trained
  )
  run(2)
  micro_run.supervised(tmp_path / 'reference', 6, evaluation=None)
  message = r'(?s)REFERENCE_CHECKPOINT_PATH: .*/4/default .*then, .*/6/default'
  with pytest.raises(ValueError, match=message):
    run(4)
  with pytest.raises(ValueError, match=message):  # finished: the same
    run(2)
  run(4, accept_changed_inputs=True)
  assert (tmp_path / 'run' / 'COMPLETED').read_text() == '4\n'


def test_examples_that_a_task_reads_elsewhere_are_compared(tmp_path):
  micro_run.supervised(tmp_path, 2, evaluation=None)
  other = micro_run.dataset('mini_tldr_sft')
  (examples,) = other.examples
  prompts = dataclasses.replace(
    examples.prompts, ids=np.array(examples.prompts.ids)
  )
  prompts.ids[5] += 1
  other = dataclasses.replace(
    other, examples=(dataclasses.replace(examples, prompts=prompts),)
  )
  with pytest.raises(ValueError, match='MIXTURE_OR_TASK_NAME, its tokens: '):
    micro_run.supervised(tmp_path, 4, dataset=lambda: other, evaluation=None)


def test_seed_changes_everything(trained, tmp_path):
  micro_run.supervised(tmp_path, seed=1)
  one = metrics_lib.read_metrics(str(trained))
  other = metrics_lib.read_metrics(str(tmp_path))
  assert one[1]['loss'] != other[1]['loss']


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_checkpoints(
  tmp_path, monkeypatch
):
  explode = supervised_lib.supervised_step

  def step(state, *args, **kwargs):
    state, metrics = explode(state, *args, z_loss=0.0, **kwargs)
    bad = jnp.where(state.step == 4, jnp.nan, 0.0)
    return state, jax.tree.map(lambda v: v + bad, metrics)

  with pytest.raises(FloatingPointError, match='loss is nan.* at step 4'):
    micro_run.supervised(tmp_path, 6, step=step)
  assert not (tmp_path / 'COMPLETED').exists()
  assert [d.name for d in (tmp_path / 'checkpoints').iterdir()] == ['2']
  micro_run.params_of(tmp_path)


def test_skipped_updates_are_counted_and_too_many_stop(trained, tmp_path):
  norms = [
    m['grad_norm']
    for step, m in metrics_lib.read_metrics(str(trained)).items()
    if step
  ]
  limit = sorted(norms)[1]  # of four steps some are above
  lenient = config.Watch(max_skipped=4, skip_gradient_norm=limit)
  micro_run.supervised(tmp_path / 'a', 6, watch=lenient)
  metrics = metrics_lib.read_metrics(str(tmp_path / 'a'))
  skipped = {step for step, m in metrics.items() if m.get('skipped')}
  assert skipped
  assert 1 + norms.index(next(n for n in norms if n > limit)) == min(skipped)
  for step in skipped:
    assert 'loss' not in metrics[step]
  micro_run.supervised(tmp_path / 'b', min(skipped), watch=lenient)
  micro_run.supervised(tmp_path / 'b', 6, watch=lenient)
  micro_run.assert_equal(
    micro_run.params_of(tmp_path / 'a'), micro_run.params_of(tmp_path / 'b')
  )
  strict = config.Watch(max_skipped=0, skip_gradient_norm=limit)
  with pytest.raises(FloatingPointError, match=f'step {min(skipped)}, the gra'):
    micro_run.supervised(tmp_path / 'c', watch=strict)


def test_another_mesh_goes_on_with_the_run(trained, tmp_path):
  """Same batches and keys; numbers within the order of a sum."""
  micro_run.supervised(tmp_path, 2)
  micro_run.supervised(tmp_path, 4, mesh_shape=(2, 2, 2))
  metrics, straight = (
    metrics_lib.read_metrics(str(path)) for path in (tmp_path, trained)
  )
  for step, expected in straight.items():
    assert metrics[step] == pytest.approx(expected, rel=1e-5)


def test_a_judge_of_another_shape_names_the_arrays(trained, tmp_path):
  with pytest.raises(ValueError, match='INITIAL_CHECKPOINT_PATH'):
    micro_run.supervised(
      tmp_path,
      model=micro_run.micro(emb_dim=24),
      start=config.Start(initial_checkpoint_path=str(trained)),
    )


def test_fresh_modules_may_be_missing_and_others_may_not(trained, tmp_path):
  head = micro_run.micro(reward_head=True)
  start = config.Start(initial_checkpoint_path=str(trained))
  with pytest.raises(ValueError, match='reward_head'):
    micro_run.supervised(tmp_path / 'a', 0, model=head, start=start)
  micro_run.supervised(
    tmp_path / 'b',
    1,
    model=head,
    start=config.Start(
      initial_checkpoint_path=str(trained), fresh=('reward_head',)
    ),
  )


def test_a_missing_checkpoint_names_the_parameter(tmp_path):
  with pytest.raises(ValueError, match='INITIAL_CHECKPOINT_PATH /nowhere'):
    micro_run.supervised(
      tmp_path, start=config.Start(initial_checkpoint_path='/nowhere')
    )


def test_another_vocabulary_names_both(trained):
  with pytest.raises(ValueError, match='SentencePiece.*this run has Byte'):
    micro_run.params_of(trained, vocabulary=seqio.ByteVocabulary())


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'batch_size': 12}, '^BATCH_SIZE 12 is not divisible by 8'),
    (
      {
        'evaluation': config.Evaluation(
          metrics=None,
          dataset=lambda: micro_run.dataset('mini_tldr_sft'),
          batch_size=4,
          examples=16,
        )
      },
      'EVAL_BATCH_SIZE 4 is not divisible by 8',
    ),
    ({'mesh_shape': (3, 1, 1)}, 'MESH_SHAPE = .3, 1, 1.'),
    ({'mesh_shape': (1, 1, 8)}, "axis 'joined_kv' .* not divisible|heads"),
    ({'batch_size': 8192}, 'BATCH_SIZE 8192 is more than'),
    ({'model': micro_run.micro(vocab_size=64)}, 'has 320 ids and the model 64'),
  ],
)
def test_what_does_not_fit_is_said_before_anything_runs(
  tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    micro_run.supervised(tmp_path, **changes)


@pytest.mark.parametrize('mesh_shape', [(3, 1, 1), (1, 1, 8)])
def test_a_mesh_that_does_not_fit_leaves_nothing(tmp_path, mesh_shape):
  with pytest.raises(ValueError):
    micro_run.supervised(tmp_path, mesh_shape=mesh_shape)
  assert not any(tmp_path.iterdir())


def test_a_directory_of_another_run_is_refused_and_left_alone(tmp_path):
  first = (
    'from ipo_md import optim\nfrom ipo_md import training\n'
    'TAU = 0.1\nTRAIN_STEPS = 10\n'
    'training.Schedule.train_steps = %TRAIN_STEPS\n'
  )
  model_dir_lib.claim(str(tmp_path), first.replace('0.1', '0.3'))
  model_dir_lib.claim(str(tmp_path), first)  # nothing was saved: corrected
  (tmp_path / 'checkpoints' / '2').mkdir(parents=True)
  model_dir_lib.claim(str(tmp_path), first.replace('10', '20'))
  with pytest.raises(ValueError, match=r'(?s)-TAU = 0.1.*\+TAU = 0.2'):
    model_dir_lib.claim(str(tmp_path), first.replace('0.1', '0.2'))
  assert (tmp_path / 'config.gin').read_text() == first
  # A schedule that depends on it: another number would be another run.
  cycle = 'optim.cosine.steps_per_cycle = %TRAIN_STEPS\n'
  other = tmp_path / 'other'
  model_dir_lib.claim(str(other), first + cycle)
  (other / 'checkpoints' / '2').mkdir(parents=True)
  model_dir_lib.claim(str(other), first + cycle)
  with pytest.raises(ValueError, match=r'(?s)-TRAIN_STEPS = 10.*\+.* = 20'):
    model_dir_lib.claim(str(other), (first + cycle).replace('10', '20'))


def test_every_setting_that_may_change_is_a_parameter():
  """A name that is misspelt or gone would be compared in silence."""
  for target in (
    checkpoints.Keep,
    config.Schedule,
    config.Watch,
    dataset_lib.load,
    infer.infer,
    judges.Endpoint,
    judges.HttpJudge,
    loop.train,
    side_by_side.side_by_side,
  ):
    assert target.may_change
    assert target.may_change <= set(inspect.signature(target).parameters)


def test_a_relative_folder_is_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  assert model_dir_lib.claim('out/x', '') == str(tmp_path / 'out/x')
  assert model_dir_lib.claim('~/x', '') == str(tmp_path / 'home/x')
  assert model_dir_lib.absolute('gs://b/x', 'MODEL_DIR') == 'gs://b/x'
  with pytest.raises(ValueError, match='MODEL_DIR is empty'):
    model_dir_lib.claim('', '')
  micro_run.supervised('relative', 2, evaluation=None)
  assert (tmp_path / 'relative' / 'COMPLETED').exists()


def test_an_unwritable_directory_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    ValueError, match='MODEL_DIR .*file/run cannot be written'
  ):
    model_dir_lib.claim(str(tmp_path / 'file' / 'run'), '')
