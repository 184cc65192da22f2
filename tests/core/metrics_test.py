import glob
import io
import json
import re

import jax
import pytest
import rich.console

from ipo_md.core import metrics
from ipo_md.core import progress


class Clock:
  """Stands in for the time module."""

  def __init__(self):
    self.now = 0.0

  def monotonic(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(progress, 'time', clock)
  return clock


def test_metrics_survive_a_kill_and_a_resume(tmp_path):
  with metrics.MetricWriter(str(tmp_path)) as writer:
    writer.scalars(10, {'loss': 1.5, 'kl': jax.numpy.float32(0.25)})
    writer.scalars(10, {'win_rate': 0.5})
    writer.scalars(20, {'loss': 9.0})
  path = tmp_path / 'metrics.jsonl'
  with path.open('a') as file:
    file.write('{"step": 30, "lo')
  expected = {10: {'kl': 0.25, 'loss': 1.5, 'win_rate': 0.5}, 20: {'loss': 9.0}}
  assert metrics.read_metrics(tmp_path) == expected

  with metrics.MetricWriter(str(tmp_path)) as writer:
    writer.scalars(20, {'loss': 1.0})
    writer.scalars(30, {'loss': 0.5})
  expected.update({20: {'loss': 1.0}, 30: {'loss': 0.5}})
  assert metrics.read_metrics(path) == expected
  for line in path.read_text().splitlines():
    json.loads(line)
  assert len(glob.glob(f'{tmp_path}/tensorboard/*tfevents*')) == 2


def test_a_bad_line_is_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "loss": 2.0}\noops\n{"step": 2}\n')
  with pytest.raises(ValueError, match='metrics.jsonl, line 2.*oops'):
    metrics.read_metrics(path)


def test_an_unwritable_directory_is_named(tmp_path):
  (tmp_path / 'run').write_text('a file')
  with pytest.raises(ValueError, match='run.*MODEL_DIR'):
    metrics.MetricWriter(str(tmp_path / 'run'))


def test_a_full_disk_is_named(tmp_path):
  with metrics.MetricWriter(str(tmp_path)) as writer:
    (tmp_path / 'metrics.jsonl').unlink()
    (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
    with pytest.raises(ValueError, match='No space left on device.*MODEL_DIR'):
      writer.scalars(1, {'loss': 1.0})


def test_other_processes_are_silent(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  with metrics.MetricWriter(str(tmp_path)) as writer:
    writer.scalars(1, {'loss': 1.0})
    writer.texts(1, {'sample': 'text'})
  progress.ProgressLine(10).update(1, {}, tokens=1)
  assert list(progress.progress([1, 2], 2, 'sampling')) == [1, 2]
  assert not list(tmp_path.iterdir())
  assert not capsys.readouterr().out


def test_progress_line_in_a_log(clock, capsys):
  line = progress.ProgressLine(3000, step=1000)
  clock.now = 60  # compiling
  line.update(1100, {'loss': 0.5}, tokens=6000)
  clock.now = 70
  line.update(1200, {'loss': 0.25, 'win_rate': 0.61}, tokens=25000)
  clock.now = 90
  line.update(1300, {'loss': 0.125}, tokens=25000)
  line.close()
  assert capsys.readouterr().out.splitlines() == [
    'step 1,100/3,000  loss 0.5000  100 tokens/s  left 19:00',
    'step 1,200/3,000  loss 0.2500  win rate 0.610  2,500 tokens/s  left 3:00',
    'step 1,300/3,000  loss 0.1250  win rate 0.610  1,250 tokens/s  left 4:15',
  ]


def test_progress_line_on_a_terminal(clock, monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr('sys.stdout', terminal)
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setattr(progress, '_CONSOLE', rich.console.Console())
  line = progress.ProgressLine(2)
  clock.now = 1
  line.update(1, {'loss': 1000.0}, tokens=1)
  print('a line')
  line.update(2, {'loss': 1.0}, tokens=1)
  line.close()
  shown = re.sub('\x1b\\[[0-9;?]*[A-Za-z]', '', terminal.getvalue())
  printed, last = (text.split('\r') for text in shown.split('\n')[:2])
  assert [text[:20] for text in printed] == ['step 1/2  loss 1000.', 'a line']
  assert [text[:20] for text in last] == [
    'step 1/2  loss 1000.',
    'step 2/2  loss 1.000',
    'step 2/2  loss 1.000',
  ]
  assert terminal.getvalue().endswith('\n\x1b[?25h')  # the cursor is there


def test_progress_of_a_phase(clock, capsys):
  for _ in progress.progress(range(4), 4, 'judging'):
    clock.now += 20
  assert capsys.readouterr().out.splitlines() == [
    'judging  2/4  50 %  left 0:40',
    'judging  4/4  took 1:20',
  ]


def test_progress_counts_what_items_hold(clock, capsys):
  chunks = [[1, 2, 3], [4, 5]]
  for _ in progress.progress(chunks, 5, 'tokenising', size=len):
    clock.now += 40
  for _ in progress.progress(chunks, 0, 'reading', size=len):
    pass
  assert capsys.readouterr().out.splitlines() == [
    'tokenising  3/5  60 %  left 0:27',
    'tokenising  5/5  took 1:20',
    'reading  5  took 0:00',
  ]
