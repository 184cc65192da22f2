"""Tests trackers with a recorder, and Weights & Biases by its offline files."""

import importlib.util
import json
import struct
import time

from clu import metric_writers
import gin
import jax
import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from ipo_md.core import metrics
from ipo_md.core import trackers


class Recorder:
  """Keeps what a tracker is called with, and raises where it is told to."""

  def __init__(self, fails: str = ''):
    self.calls = []
    self._fails = fails

  def __getattr__(self, name):
    def call(*arguments):
      self.calls.append((name, *arguments))
      if name == self._fails:
        raise KeyError('of a library\nin two lines')

    return call


def write(model_dir, tracker):
  with metrics.MetricWriter(str(model_dir), tracker) as writer:
    writer.scalars(10, {'loss': jax.numpy.float32(1.5)})
    writer.performance(10, {'goodput': 0.5})
    writer.texts(10, {'sample_0': 'A text.'})
    writer.texts(20, {})


def test_a_tracker_gets_what_tensorboard_gets(tmp_path):
  gin.parse_config('TAU = 0.1\nNAME = "x"')
  recorder = Recorder()
  write(tmp_path, recorder)
  gin.clear_config()
  assert recorder.calls == [
    ('write_hparams', {'TAU': 0.1, 'NAME': 'x'}),
    ('write_scalars', 10, {'loss': 1.5}),
    ('write_scalars', 10, {'performance/goodput': 0.5}),
    ('write_texts', 10, {'sample_0': 'A text.'}),
    ('close',),
  ]


def test_a_writer_of_clu_is_a_tracker(tmp_path):
  write(tmp_path, metric_writers.SummaryWriter(str(tmp_path / 'mine')))
  assert list((tmp_path / 'mine').glob('*tfevents*'))


@pytest.mark.parametrize(
  'method', ['write_hparams', 'write_scalars', 'write_texts', 'close']
)
def test_a_tracker_that_fails_is_named_once_and_dropped(
  tmp_path, method, capsys
):
  recorder = Recorder(method)
  with metrics.MetricWriter(str(tmp_path), recorder) as writer:
    for step in range(20):
      writer.scalars(step, {'loss': 1.0})
      writer.texts(step, {'sample': 'text'})
  assert len(metrics.read_metrics(tmp_path)) == 20
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith('TRACKER has failed, and the run goes on without it:')
  assert line.endswith(r"KeyError: 'of a library\nin two lines'")
  assert recorder.calls[-1][0] == method  # the last one


def test_the_tracker_of_a_failed_run_knows(tmp_path):
  recorder = Recorder()
  with (
    pytest.raises(FloatingPointError),
    metrics.MetricWriter(str(tmp_path), recorder),
  ):
    raise FloatingPointError
  assert [name for name, *_ in recorder.calls] == ['write_hparams', 'fail']


def test_other_processes_do_not_call_it(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  recorder = Recorder()
  write(tmp_path, recorder)
  assert not recorder.calls


def test_a_report_is_markdown_where_tables_are_not_known():
  class Texts:
    """A writer of CLU's interface, as far as it is called."""

    def __init__(self):
      self.texts = {}

    def write_hparams(self, hparams):
      del hparams

    def write_texts(self, step, texts):
      assert step == 0
      self.texts |= texts

    def close(self):
      pass

  tracker = Texts()
  with trackers.InBackground(tracker) as background:
    background.report(
      {'win_rates': trackers.Table(('judge', 'win rate'), [('truth', 0.75)])},
      [],
    )
  assert tracker.texts == {
    'win_rates': '| judge | win rate |\n| --- | --- |\n| truth | 0.75 |'
  }


def test_what_is_no_tracker_names_what_it_lacks():
  trackers.check(None)
  trackers.check(metric_writers.LoggingWriter())
  with pytest.raises(ValueError, match='TRACKER, a dict, lacks write_hparams'):
    trackers.check({})


def test_a_missing_package_says_how_to_install_it(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"wandb: pip install 'ipo_md\[wandb\]'"):
    trackers.Wandb(model_dir=str(tmp_path / 'run'))
  assert not list(tmp_path.iterdir())


def records(folder) -> list[wandb_internal_pb2.Record]:
  """Reads an offline run, whose file W&B's process writes after the run."""
  (path,) = folder.glob('*.wandb')
  for _ in range(200):
    found = read_records(path.read_bytes())
    if any(record.HasField('exit') for record in found):
      return found
    time.sleep(0.05)
  raise AssertionError(f'{path} has no end.')


def read_records(content: bytes) -> list[wandb_internal_pb2.Record]:
  """Reads records in blocks, as in a log of LevelDB."""
  found, part, at = [], b'', 7
  while at < len(content):
    left = 32768 - at % 32768
    if left < 7:
      at += left
      continue
    _, length, kind = struct.unpack('<LHB', content[at : at + 7])
    part += content[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or the last part
      found.append(wandb_internal_pb2.Record.FromString(part))
      part = b''
  return found


def history(folder) -> list[dict]:
  """The metrics of an offline run, without those of W&B itself."""
  return [
    {
      name: json.loads(item.value_json)
      for item in record.history.item
      if not (name := '/'.join(item.nested_key) or item.key).startswith('_')
    }
    for record in records(folder)
    if record.WhichOneof('record_type') == 'history'
  ]


@pytest.fixture(name='offline')
def offline_fixture(tmp_path, monkeypatch):
  """Keeps the settings and caches of W&B within the test."""
  for name in ('CONFIG', 'CACHE', 'DATA'):
    monkeypatch.setenv(f'WANDB_{name}_DIR', str(tmp_path / name.lower()))
  monkeypatch.setenv('WANDB_ERROR_REPORTING', 'false')  # it would be sent
  return tmp_path / 'run'


def test_wandb_records_a_run_and_goes_on_with_it(offline, capsys):
  for n, loss in enumerate((1.5, 1.25)):  # the second one repeats step 10
    time.sleep(n)  # W&B names folders by the second
    gin.parse_config('TAU = 0.1')
    tracker = trackers.Wandb(
      model_dir=str(offline), mode='offline', tags=['test']
    )
    with metrics.MetricWriter(str(offline), tracker) as writer:
      writer.scalars(10, {'loss': loss})
      writer.performance(10, {'goodput': 0.5})
      writer.texts(10, {'sample_0': 'A text.'})
    gin.clear_config()
  run_id = (offline / 'wandb' / 'run_id').read_text()
  folders = sorted((offline / 'wandb').glob(f'offline-run-*-{run_id}'))
  out = capsys.readouterr().out
  assert len(folders) == out.count('wandb sync') == 2
  for folder, loss in zip(folders, (1.5, 1.25), strict=True):
    assert str(folder) in out
    scalars, performance, texts = history(folder)
    assert scalars == {'step': 10, 'loss': loss}
    assert performance == {'step': 10, 'performance/goodput': 0.5}
    assert texts['texts/_type'] == 'table-file'
    (table,) = (folder / 'files').glob('media/table/*.json')
    assert json.loads(table.read_text())['data'] == [['sample_0', 'A text.']]
    runs = [r.run for r in records(folder) if r.HasField('run')]
    assert runs[0].run_id == run_id
    assert (runs[0].display_name, list(runs[0].tags)) == ('run', ['test'])
    axes = [r.metric for r in records(folder) if r.HasField('metric')]
    assert ('*', 'step') in {(m.glob_name, m.step_metric) for m in axes}
    assert {
      item.key: json.loads(item.value_json)
      for record in records(folder)
      if record.HasField('config')
      for item in record.config.update
    }['TAU'] == 0.1


def test_wandb_shows_a_report(offline):
  offline.mkdir()
  (offline / 'results.json').write_text('{}')
  tracker = trackers.Wandb(model_dir=str(offline), mode='offline')
  table = trackers.Table(('judge', 'win rate'), [('truth', 0.75)])
  with trackers.InBackground(tracker) as background:
    background.report({'win_rates': table}, [offline / 'results.json'])
  (folder,) = (offline / 'wandb').glob('offline-run-*')
  (file,) = (folder / 'files').glob('media/table/win_rates*.json')
  shown = json.loads(file.read_text())
  assert shown['columns'] == ['judge', 'win rate']
  assert shown['data'] == [['truth', 0.75]]
  assert (folder / 'files' / 'results.json').read_text() == '{}'


@pytest.mark.parametrize(
  ('error', 'reason'),
  [(None, 'nobody is logged in'), ('No route\nto host', 'No route to host')],
)
def test_what_cannot_be_uploaded_is_recorded(
  offline, monkeypatch, capsys, error, reason
):
  def login(*, prompt):
    assert not prompt
    if error:
      raise wandb.errors.CommError(error)
    return False

  monkeypatch.setattr(wandb, 'login', login)
  tracker = trackers.Wandb(model_dir=str(offline))
  with metrics.MetricWriter(str(offline), tracker) as writer:
    writer.scalars(1, {'loss': 1.0})
  (folder,) = (offline / 'wandb').glob('offline-run-*')
  assert history(folder) == [{'step': 1, 'loss': 1.0}]
  (line,) = capsys.readouterr().out.splitlines()
  assert reason in line and f'wandb sync {folder}' in line


def test_a_failed_run_is_failed_in_wandb(offline):
  for n in range(2):  # the same process may try again
    time.sleep(n)  # W&B names folders by the second
    tracker = trackers.Wandb(model_dir=str(offline), mode='offline')
    with (
      pytest.raises(FloatingPointError),
      metrics.MetricWriter(str(offline), tracker),
    ):
      raise FloatingPointError
  folders = list((offline / 'wandb').glob('offline-run-*'))
  assert len(folders) == 2
  for folder in folders:
    exits = [r.exit for r in records(folder) if r.HasField('exit')]
    assert [e.exit_code for e in exits] == [1]
