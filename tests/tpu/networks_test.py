"""What precompile says before it compiles."""

import re

import gin
import pytest

from ipo_md.core import gin_config
from ipo_md.tpu import devices

_FILES = [
  f'gin/{name}.gin'
  for name in ('runs/online', 'models/t5_tiny', 'tasks/mini_tldr')
  + ('judges/likelihood', 'algorithms/ipo', 'runs/precompile')
]


class _Compiling(Exception):
  """Stands in for the compilation."""


def _said(monkeypatch, capsys, tmp_path, more=(), files=()) -> str:
  """Returns what is printed before the compiler is asked for anything."""

  def compiling(*_):
    raise _Compiling

  monkeypatch.setattr(devices, 'devices', compiling)
  bindings = [
    f"MODEL_DIR = '{tmp_path}'",
    "TOPOLOGY = 'v5e:2x2'",
    'BATCH_SIZE = 8',
    *more,
  ]
  gin.clear_config()
  gin_config.add_root()
  gin_config.parse([*_FILES, *files], bindings)
  try:
    with pytest.raises(_Compiling):
      gin.query_parameter('RUN/gin.macro.value').scoped_configurable_fn()
  finally:
    gin.clear_config()
  return capsys.readouterr().out


def test_sizes_are_said_before_the_compiler_is_silent(
  monkeypatch, capsys, tmp_path
):
  said = _said(monkeypatch, capsys, tmp_path)
  assert 'Compiling BATCH_SIZE 8 for 1 x v5e:2x2' in said
  sizes = re.findall(r'(\w+) +([0-9.]+) million .*t5_tiny.gin', said)
  assert [name for name, _ in sizes] == ['policy', 'reference', 'judge']
  assert len({float(size) for _, size in sizes}) == 1
  assert said.endswith('word.\n')
  assert 'nothing gives the judge other sizes' in said


def test_a_judge_of_its_own_size_is_named(monkeypatch, capsys, tmp_path):
  judge = tmp_path / 'judge.gin'
  judge.write_text(
    'from __gin__ import dynamic_registration\nfrom ipo_md import models\n'
    'judge/models.T5.mlp_dim = 4096\n'
  )
  including = tmp_path / 'including.gin'
  including.write_text(f"include '{judge}'\n")
  said = _said(monkeypatch, capsys, tmp_path, files=[str(including)])
  policy, judge_size = (
    float(re.search(rf'{name} +([0-9.]+) million', said)[1])
    for name in ('policy', 'judge')
  )
  assert judge_size > policy
  assert re.search(r'judge .*/judge\.gin\)', said)
  more = ['judge/models.T5.mlp_dim = 128']
  said = _said(monkeypatch, capsys, tmp_path, more=more)
  assert re.search(r'judge .*the command line', said)
