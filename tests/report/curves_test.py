"""Tests of curves over seeds."""

import json
import re
import sys

import numpy as np
import pytest
from scipy import stats

from ipo_md.report import curves


@pytest.fixture(name='runs')
def runs_fixture(tmp_path):
  """Makes two algorithms with three seeds and one."""
  for name, shift in (('a_0', 0.0), ('a_1', 1.0), ('a_2', 5.0), ('b_0', 0.0)):
    folder = tmp_path / name
    folder.mkdir()
    rows = [
      {'step': step, 'up': step * 0.1 + shift, 'loss': 1.0}
      for step in (10, 20, 30)
    ] + [{'step': 30, 'win_rate': 0.5}]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / 'metrics.jsonl').write_text(text)
  return tmp_path


def run(monkeypatch, *arguments):
  monkeypatch.setattr(sys, 'argv', ['curves', *map(str, arguments)])
  curves.main()


def test_figure_and_table(runs, monkeypatch, capsys):
  run(
    monkeypatch,
    '--metric=up',
    f'--out={runs}/up',
    f'A={runs}/a_*',
    f'B={runs}/b_*',
  )
  half = stats.t.ppf(0.975, 2) * np.std([0, 1, 5], ddof=1) / np.sqrt(3)
  assert capsys.readouterr().out.splitlines() == [
    '| up | seeds | first | last | difference |',
    '|---|---|---|---|---|',
    f'| A | 3 | 3.00 ({3 - half:.2f}, {3 + half:.2f}) | '
    f'5.00 ({5 - half:.2f}, {5 + half:.2f}) | 2.00 (2.00, 2.00) |',
    '| B | 1 | 1.00 (1.00, 1.00) | 3.00 (3.00, 3.00) | 2.00 (2.00, 2.00) |',
  ]
  header, first, *_, last = (runs / 'up.csv').read_text().splitlines()
  assert header == 'series,x,y,low,high'
  assert first.startswith('A,10.0,3.0,') and last.startswith('B,30.0,3.0,3.0')
  assert (runs / 'up.png').stat().st_size > 5000


@pytest.mark.parametrize(
  ('metric', 'group', 'message'),
  [
    ('up', 'C=c_*', "no folder matches '.*c_.*' of C"),
    ('down', 'A=a_*', 'metrics.jsonl has no down, only loss, up, win_rate'),
    ('up', 'A=*', 'A: .*bare is no MODEL_DIR of a run'),
    ('up', 'A=[ad]_*', 'A: .* values at different steps'),
  ],
)
def test_refused(runs, monkeypatch, capsys, metric, group, message):
  (runs / 'bare').mkdir()
  (runs / 'd_0').mkdir()
  (runs / 'd_0' / 'metrics.jsonl').write_text('{"step": 10, "up": 1.0}\n')
  name, _, pattern = group.partition('=')
  with pytest.raises(SystemExit):
    run(
      monkeypatch,
      f'--metric={metric}',
      f'--out={runs}/x',
      f'{name}={runs}/{pattern}',
    )
  assert re.search(message, capsys.readouterr().err)
