"""Tests of the files of sweeps, and of what is checked before they start."""

import io
import json
import pathlib
import subprocess
import sys
import types

import gin
import pytest

from ipo_md.core import identity
from ipo_md.core import model_dir
from launch.sweep import check as check_lib
from launch.sweep import main
from launch.sweep import read

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    ('judge = ', 'jugde = ', r"\[select\]: unknown key 'jugde'; try judge"),
    ('against = "rl"', 'against = "rk"', "ipo is selected against 'rk'"),
    ('against = "supervised"', 'against = "ipo"', 'rl against ipo against rl'),
    ('axes = {TAU = [0.1, 0.2]}', 'axes = {TAU = []}', 'TAU = .* at least one'),
    ('axes = {TAU = [0.1, 0.2]}', 'axes = {TAU = 0.1}', 'must be a list'),
    ("'$supervised'", "'$supervized'", r'\$supervized.*unknown'),
    ('seeds = [0, 1]', 'seeds = [0, 0]', 'list of different seeds'),
    ('seeds = [0, 1]', 'seeds = [[0], [1]]', 'list of different seeds'),
    ('seeds = [0, 1]', 'seeds = 2', 'seeds = 2 .* list'),
    ('axes = {TAU = [0.1, 0.2]}', 'axes = [0.1]', r'axes = \[0.1\] .* table'),
    ('seeds = [0]', 'seeds = [2]', 'list of different seeds'),
    ("'test'", "'validation'", 'Set both, to different splits'),
    ("'test'", "'validation[:9]'", r'validation\[:9\] in .*Set both, to diff'),
    ('policies = ["supervised"]', 'policies = ["sft"]', "'sft' is not one of"),
    ('at_once = 2', 'at_once = 0', 'at_once = 0'),
    (
      'launcher = [',
      'launcher = ["--bucket=gs://BUCKET", ',
      'the name of your bucket in',
    ),
    ('at_once = 2', 'at_once 2', 'line 2'),
    ('[algorithms.ipo]', '[algorithms.supervised]', 'both a run and an algo'),
  ],
)
def test_a_wrong_spec(spec, old, new, message):
  text = spec.read_text()
  assert old in text
  spec.write_text(text.replace(old, new))
  with pytest.raises(ValueError, match=message):
    read.read(str(spec), '/out')


def test_a_file_is_laid_over_its_base(spec, tmp_path):
  above = tmp_path / 'above.toml'
  above.write_text(
    """
    base = "spec.toml"
    at_once = 3
    [policies]
    seeds = [0, 1, 2]
    [algorithms.ipo]
    axes = {BETA = [1.0]}
    bindings = {TAU = 0.5}
    [algorithms.dpo]
    """
  )
  below, found = (read.read(str(path), '/out') for path in (spec, above))
  assert (below.at_once, found.at_once) == (2, 3)
  assert (below.seeds, found.seeds) == ([0, 1], [0, 1, 2])
  assert found.algorithms == {
    'rl': below.algorithms['rl'],
    'ipo': [{'TAU': t, 'BETA': '1.0'} for t in ('0.3', '0.05')],  # tables merge
    'dpo': [{}],
  }
  policy = found.policy('dpo', {}, 2)
  assert policy.bindings['INITIAL_CHECKPOINT_PATH'] == "'/out/supervised'"
  assert found.launcher == below.launcher and found.runs == below.runs
  for base in ('above.toml', 'missing.toml'):
    above.write_text(f'base = "{base}"')
    with pytest.raises(ValueError, match=f'{base}. is not another file'):
      read.read(str(above), '/out')


@pytest.mark.parametrize(
  ('new', 'message'),
  [
    ('{TAUU = [0.1, 0.2]}', 'TAUU is set, but nothing .* Did you mean TAU'),
    ('{BETA = [0.1, 0.2]}', 'BETA is set, but nothing'),
    ('{"losses.dppo.beta" = [1, 2]}', "matching 'losses.dppo'"),
    (
      '{"optim.adafactor.learning_rate" = [1, 2]}',
      'nothing in this run refers to optim.adafactor',
    ),
    (
      '{"trian/losses.ipo.tau" = [1, 2]}',
      'nothing in this run refers to trian/losses.ipo',
    ),
    ('{TAU = [0.1, 0.1]}', 'Two runs would be called ipo_TAU=0.1_SEED=0'),
    ('{TAU = ["0.1", "0.10"]}', 'are the same run'),
    ('{TAU = ["@losses.ipo("]}', 'TAU'),
    ('{"losses.ipo.tau" = [1, 2]}', None),
    ('{"eval/data.load.split" = ["\'test\'", "\'train\'"]}', None),
    ('judge = "truth"', "'truth' is not one of JUDGES"),
  ],
)
def test_an_axis_is_checked_before_anything_starts(
  tmp_path, monkeypatch, new, message
):
  """The check runs in this process, which saves a start."""
  smoke = (_ROOT / 'launch/sweeps/smoke.toml').read_text()
  old = 'judge = "reward_model"'
  if not new.startswith('judge'):
    old, new = 'axes = {TAU = [0.03, 0.1]}', f'axes = {new}'
  assert smoke.count(old) == 1
  path = tmp_path / 'spec.toml'
  path.write_text(smoke.replace(old, new))

  def check(command, *, input, **_):  # noqa: A002
    del command
    monkeypatch.setattr('sys.stdin', io.StringIO(input))
    printed = []
    monkeypatch.setattr('builtins.print', lambda x, **_: printed.append(x))
    code = check_lib.main()
    return subprocess.CompletedProcess([], code, '\n'.join(printed), '')

  # Only this module's subprocess: imports that gin makes may run others.
  monkeypatch.setattr(main, 'subprocess', types.SimpleNamespace(run=check))
  spec = read.read(str(path), str(tmp_path / 'out'))
  try:
    if message is None:
      main.Sweep(spec, tmp_path / 'logs').check()
    else:
      with pytest.raises(ValueError, match=message):
        main.Sweep(spec, tmp_path / 'logs').check()
  finally:
    gin.clear_config()
  assert not (tmp_path / 'out').exists()


def test_changed_inputs_are_accepted_on_request(tmp_path, monkeypatch, capsys):
  folder, rows = tmp_path / 'run', tmp_path / 'rows.jsonl'
  rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
  arguments = [
    '--gin_file=gin/runs/supervised.gin',
    '--gin_file=gin/models/t5_tiny.gin',
    '--gin_file=gin/tasks/preference_files.gin',
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}",
    '--gin.TRAIN_STEPS=1',
    '--gin.BATCH_SIZE=1',
    f'--gin.TRAIN_FILE={rows}',
    f'--gin.VALIDATION_FILE={rows}',
    f'--gin.MODEL_DIR={folder}',
  ]

  def check(*more: str) -> int:
    run = {'arguments': [*arguments, *more], 'axes': [], 'judge': None}
    given = io.StringIO(json.dumps({'run': {**run, 'folder': str(folder)}}))
    monkeypatch.setattr(sys, 'stdin', given)
    return check_lib.main()

  try:
    check_lib.config_of(arguments, [])
    config = gin.config_str()
    model_dir.claim(str(folder), config, inputs=identity.of_run())
    (folder / 'COMPLETED').write_text('1\n')
    assert check() == 0
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "d"}\n')
    assert check() == 1
    assert 'holds results from other inputs' in capsys.readouterr().out
    assert check('--gin.ACCEPT_CHANGED_INPUTS=True') == 0
  finally:
    gin.clear_config()
