"""The command line: what a user gets wrong, and SIGTERM in a real process."""

import os
import pathlib
import re
import signal
import subprocess
import sys

from absl import flags
import gin
import jax
import numpy as np
import pytest

from ipo_md import __main__ as main
from ipo_md.checkpoints import load
from ipo_md.core import gin_config
from ipo_md.core import sharding
from tasks.mini_tldr import tasks

_ROOT = pathlib.Path(__file__).parent.parent
SIZES = {
  'emb_dim': 16,
  'num_heads': 2,
  'head_dim': 8,
  'num_encoder_layers': 1,
  'num_decoder_layers': 1,
  'mlp_dim': 16,
}
FILES = (
  'gin/runs/supervised.gin',
  'gin/models/t5_tiny.gin',
  'gin/tasks/mini_tldr.gin',
)


def arguments(model_dir, *, files=FILES, without=(), **changes) -> list[str]:
  """The command line of a micro run."""
  bindings = {
    'MODEL_DIR': f"'{model_dir}'",
    'TRAIN_STEPS': 2,
    'BATCH_SIZE': 8,
    'LOG_PERIOD': 1,
    'EVAL_PERIOD': 0,
    'EVAL_EXAMPLES': 8,
    'EVAL_BATCH_SIZE': 8,
    'CHECKPOINT_PERIOD': 0,
    'DROPOUT_RATE': 0.1,
    'data.load.split': "'validation'",
    **{f'models.T5.{name}': size for name, size in SIZES.items()},
  } | changes
  return [f'--gin_file={file}' for file in files] + [
    f'--gin.{name}={value}'
    for name, value in bindings.items()
    if name not in without
  ]


@pytest.fixture(name='call')
def call_fixture(monkeypatch):
  """Calls the command in this process, which has joined the others already."""
  monkeypatch.setattr(main, 'start_processes', lambda: None)
  # Other tests' search paths would be listed in the errors.
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])

  def call(args):
    gin.clear_config()
    for name in ('gin_file', 'gin_bindings'):
      flags.FLAGS[name].unparse()  # else they add to those of the last call
    flags.FLAGS(gin_config.rewrite_gin_args(['ipo_md', *args]))
    main.main(['ipo_md'])

  yield call
  gin.clear_config()


def error_of(call, args, capsys) -> str:
  """What it says; an exit code of 1, one message, no traceback."""
  capsys.readouterr()
  with pytest.raises(SystemExit) as raised:
    call(args)
  assert raised.value.code == 1
  err = capsys.readouterr().err
  assert err.count('ipo_md: ') == 1
  assert 'Traceback' not in err
  assert len(err) < 1000
  return err


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'files': ('gin/runs/supervise.gin', *FILES[1:])},
      'gin/runs/supervise.gin',
    ),
    (
      {'LEARNIN_RATE': 1},
      'LEARNIN_RATE is set, .* Did you mean LEARNING_RATE',
    ),
    (
      {'without': ('TRAIN_STEPS',), 'TRAIN_STEP': 1},
      'TRAIN_STEP is set, .* Did you mean TRAIN_STEPS',
    ),
    ({'without': ('TRAIN_STEPS',)}, 'needed: TRAIN_STEPS. Set it with'),
    (
      {'files': FILES[:1], 'without': ('DROPOUT_RATE',)},
      r'needed: EOS_ID \(by a file of gin/models\), .*'
      r'TASK_FEATURE_LENGTHS \(by a file of gin/tasks\)',
    ),
    (
      {'files': FILES[1:]},
      r'RUN \(by a file of gin/runs\)|is set, but nothing',
    ),
    (
      {'training.train.seeed': 1},
      "'training.train' doesn't have a parameter named 'seeed'",
    ),
    ({'training.trian.seed': 1}, "No configurable matching 'training.trian'"),
    ({'OPTIMIZER': '@optimizers.adamm'}, "'@optimizers.adamm'"),
    ({'LEARNING_RATE': 'le-4'}, 'LEARNING_RATE = le-4'),
    ({'MIXTURE_COEFS': '(0.0,)*8'}, r'not an expression'),
    (
      {'TASK_FEATURE_LENGTHS': "{'inputs': 1, 'targets': 36}"},
      r"TASK_FEATURE_LENGTHS\['inputs'\] is 1, which leaves no room",
    ),
    (
      {'TASK_FEATURE_LENGTHS': "{'inputs': 74, 'target': 36}"},
      "TASK_FEATURE_LENGTHS has no length .* for 'targets'",
    ),
    (
      {'SUPERVISED_TASK': "'mini_tldr_stf'"},
      "MIXTURE_OR_TASK_NAME 'mini_tldr_stf' .* Nearest: mini_tldr_sft",
    ),
  ],
)
def test_what_is_wrong_is_said_once(call, tmp_path, capsys, changes, message):
  err = error_of(call, arguments(tmp_path, **changes), capsys)
  assert re.search(message, err), err
  assert not (tmp_path / 'checkpoints').exists()


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('LEARNIN_RATE = 1', 'LEARNIN_RATE is set, .* Did you mean LEARNING_RATE'),
    ('LEARNING_RATE 1', r'user.gin, line \d: .* LEARNING_RATE 1'),
    ('from ipo_md import stepz', "No module named 'ipo_md.stepz'"),
    (
      'from ipo_md import algorithms\nalgorithms.onlin_step.top_k = 1',
      'algorithms.onlin_step; .* has no attribute onlin_step',
    ),
    (
      'algorithms.online_step.loss = 1',
      "'algorithms' was not provided by an import",
    ),
  ],
)
def test_a_file_of_the_user(call, tmp_path, capsys, text, message):
  path = tmp_path / 'user.gin'
  path.write_text(f'from __gin__ import dynamic_registration\n{text}\n')
  args = arguments(tmp_path / 'run', files=(*FILES, str(path)))
  err = error_of(call, args, capsys)
  assert re.search(message, err), err
  assert not (tmp_path / 'run').exists()


def test_a_binding_without_a_value():
  with pytest.raises(SystemExit, match=r'--gin\.TAU: write --gin\.TAU=VALUE'):
    gin_config.rewrite_gin_args(['ipo_md', '--gin.TAU'])
  assert gin_config.rewrite_gin_args(['--gin.A="b=c"']) == [
    '--gin_bindings=A = "b=c"'
  ]


def test_a_process_that_fails_alone_does_not_wait_for_the_others(
  call, tmp_path, capsys, monkeypatch
):
  """JAX would wait for them in its barrier at the exit."""
  monkeypatch.setattr(main.private_apis, 'process_count', lambda: 2)

  def leave(code):
    raise SystemExit(f'at once: {code}')

  monkeypatch.setattr(main.os, '_exit', leave)
  with pytest.raises(SystemExit, match='at once: 1'):
    call(arguments(tmp_path, TRAIN_STEP=1))
  assert 'TRAIN_STEP is set' in capsys.readouterr().err


def params_of(path: pathlib.Path) -> dict:
  """Parameters of the micro run's last checkpoint."""
  return load.load_params(
    str(path),
    gin.get_bindings('training.train')['model'],
    sharding.make_mesh((1, -1, 1)),
    name='INITIAL_CHECKPOINT_PATH',
    vocabulary=tasks.VOCABULARY,
  )


def test_sigterm_ends_a_run_that_has_nothing_to_save(call, tmp_path, capsys):
  """JAX's own handler, which this one stands for, would swallow it."""
  (tmp_path / 'file').write_text('')
  before = signal.signal(signal.SIGTERM, lambda *_: None)
  try:
    error_of(call, arguments(tmp_path / 'file' / 'run'), capsys)
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    call(
      [
        '--gin_file=gin/runs/game.gin',
        '--gin_file=gin/algorithms/ipo.gin',
        f"--gin.MODEL_DIR='{tmp_path}/game'",
        '--gin.TRAIN_STEPS=2',
        '--gin.TAU=0.5',
      ]
    )
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  finally:
    signal.signal(signal.SIGTERM, before)


def test_sigterm_saves_and_the_run_goes_on_as_if_nothing_was(
  call, tmp_path, capsys
):
  """Stopped where it happens to be, run again, it is the uninterrupted run.

  On one device, as a user has: the processes do not see this one's eight.
  """
  stopped, straight = tmp_path / 'stopped', tmp_path / 'straight'
  cached = {'CACHE_DIR': f"'{tmp_path}/cache'"}

  def start(args: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
      [sys.executable, '-u', '-m', 'ipo_md', *args],
      cwd=_ROOT,
      env=os.environ | {'XLA_FLAGS': ''},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  process = start(arguments(stopped, **cached | {'TRAIN_STEPS': 10**6}))
  said = []
  for line in process.stdout:
    said.append(line)
    if line.startswith('step '):
      process.send_signal(signal.SIGTERM)
      break
  said += process.communicate(timeout=300)[0]
  assert process.returncode == 0, ''.join(said)
  assert not (stopped / 'COMPLETED').exists()
  (step,) = (int(d.name) for d in (stopped / 'checkpoints').iterdir())
  assert f'Stopped by SIGTERM: step {step:,} is saved' in ''.join(said)

  cached['TRAIN_STEPS'] = step + 3
  out, _ = start(arguments(stopped, **cached)).communicate(timeout=300)
  assert f'Resumed from step {step:,}' in out
  assert (stopped / 'COMPLETED').read_text() == f'{step + 3}\n'

  start(arguments(straight, **cached)).communicate(timeout=300)
  call(arguments(straight, **cached))
  assert 'is complete' in capsys.readouterr().out
  jax.tree.map(
    np.testing.assert_array_equal, params_of(stopped), params_of(straight)
  )

  # Other bindings in the same place: an error, and nothing is touched.
  before = {p: p.stat().st_mtime_ns for p in straight.rglob('*')}
  err = error_of(call, arguments(straight, **cached | {'SEED': 1}), capsys)
  assert 'other bindings' in err
  assert '-SEED = 0' in err
  assert '+SEED = 1' in err
  assert {p: p.stat().st_mtime_ns for p in straight.rglob('*')} == before


def test_a_second_run_in_one_folder_is_one_line(call, tmp_path, capsys):
  hold = (
    'import sys, time\nfrom ipo_md.core import ownership\n'
    'with ownership.owned(sys.argv[1]):\n  print(1, flush=True)\n'
    '  time.sleep(600)\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', hold, tmp_path], cwd=_ROOT, stdout=subprocess.PIPE
  )
  try:
    process.stdout.readline()
    err = error_of(call, arguments(tmp_path, LEARNING_RATE=0.5), capsys)
  finally:
    process.kill()
    process.wait()
  assert re.search(f'MODEL_DIR {tmp_path} belongs .*{process.pid}', err), err
  assert [path.name for path in tmp_path.iterdir()] == ['OWNER.json']


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--num_processes=2', '--process_id=1'], 'needs --coordinator_address'),
    (['--num_processes=2'], '--coordinator_address and --process_id'),
    (['--process_id=0'], '--coordinator_address and --num_processes'),
    (['--coordinator_address=h:1'], '--num_processes and --process_id'),
    (
      ['--coordinator_address=h:1', '--num_processes=2'],
      '--coordinator_address=h:1 needs --process_id',
    ),
    (
      ['--coordinator_address=h:1', '--num_processes=2', '--process_id=2'],
      '--process_id=2 is not between 0 and 1',
    ),
    (
      ['--coordinator_address=h:1', '--num_processes=2', '--process_id=-1'],
      '--process_id=-1 is not between 0 and 1',
    ),
    (
      ['--coordinator_address=h', '--num_processes=2', '--process_id=1'],
      '--coordinator_address=h is not HOST:PORT',
    ),
  ],
)
def test_a_process_does_not_run_alone_by_mistake(monkeypatch, args, message):
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *_: pytest.fail('it runs')
  )
  names = ('coordinator_address', 'num_processes', 'process_id')
  for name in names:
    flags.FLAGS[name].unparse()
  flags.FLAGS(['ipo_md', *args])
  try:
    with pytest.raises(ValueError, match=re.escape(message)):
      main.start_processes()
  finally:
    for name in names:
      flags.FLAGS[name].unparse()


@pytest.mark.parametrize(
  ('others', 'message'),
  [
    (['SEED = 0\nTAU = 1\n'], None),
    (['SEED = 1\nTAU = 1\n'], r'0 and 1 .*\n  SEED = 0 .process 0.\n.*= 1$'),
    (['SEED = 0\nTAU = 1\n', 'SEED = 0\n'], '0 and 2 .*\n  TAU = 1 .process 0'),
  ],
)
def test_all_processes_have_one_configuration(monkeypatch, others, message):
  monkeypatch.setattr(
    main.private_apis, 'exchange', lambda text: [text, *others]
  )
  config = 'SEED = 0\nTAU = 1\n'
  if message is None:
    main.compare_processes(config)
    return
  with pytest.raises(ValueError, match=f'(?s){message}'):
    main.compare_processes(config)


@pytest.mark.parametrize(
  ('tpu', 'platforms', 'cluster', 'config'),
  [
    (False, None, False, ['jax_platforms']),  # libtpu is there to compile
    (False, 'cpu', False, []),
    (True, None, True, []),
    (True, 'cpu', False, []),  # compiling on a TPU machine
  ],
)
def test_libtpu_without_chips_is_no_tpu(
  monkeypatch, tpu, platforms, cluster, config
):
  joined, set_ = [], []
  monkeypatch.delenv('JAX_PLATFORMS')
  if platforms is not None:
    monkeypatch.setenv('JAX_PLATFORMS', platforms)
  monkeypatch.setattr(main.importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(main, '_has_tpu', lambda: tpu)
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *args: joined.append(args)
  )
  monkeypatch.setattr(jax.config, 'update', lambda k, v: set_.append(k))
  for name in ('coordinator_address', 'num_processes', 'process_id'):
    flags.FLAGS[name].unparse()
  flags.FLAGS(['ipo_md'])
  main.start_processes()
  assert (joined == [()]) == cluster
  assert cluster or joined[0][1:] == (1, 0)
  assert set_ == config


@pytest.mark.parametrize(
  ('given', 'read'),
  [
    ('MODEL_DIR=/tmp/x', "MODEL_DIR = '/tmp/x'"),
    ("MODEL_DIR='/tmp/x'", "MODEL_DIR = '/tmp/x'"),
    ('MODEL_DIR=out/x', "MODEL_DIR = 'out/x'"),
    ('MODEL_DIR=~/x', "MODEL_DIR = '~/x'"),
    ('MODEL_DIR=../x:best', "MODEL_DIR = '../x:best'"),
    ('MODEL_DIR=gs://bucket/x-1', "MODEL_DIR = 'gs://bucket/x-1'"),
    ('EVAL_SPLIT=test', "EVAL_SPLIT = 'test'"),
    ('EVAL_SPLIT=None', 'EVAL_SPLIT = None'),
    # A misspelt number stays what it is, for gin to refuse.
    ('TAU=O.1', 'TAU = O.1'),
    ('LEARNING_RATE=le-4', 'LEARNING_RATE = le-4'),
    ('TAU=1/2', 'TAU = 1/2'),
    ('TAU=.5/2', 'TAU = .5/2'),
    ('JUDGE=@eval/judges.indifferent', 'JUDGE = @eval/judges.indifferent'),
    ('SPLITS={"a": "b/c"}', 'SPLITS = {"a": "b/c"}'),
  ],
)
def test_a_path_needs_no_quotes_and_a_number_is_never_a_text(given, read):
  (binding,) = gin_config.rewrite_gin_args([f'--gin.{given}'])
  assert binding == f'--gin_bindings={read}'


@pytest.mark.parametrize('args', [[], ['gin/runs/online.gin'], ['--help']])
def test_first_contact_is_a_short_usage_and_nothing_heavy(args):
  done = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', 'ipo_md', *args],
    cwd=_ROOT,
    capture_output=True,
    text=True,
  )
  imported = [
    line for line in done.stderr.splitlines() if 'import time' in line
  ]
  said = done.stdout + done.stderr.replace('\n'.join(imported), '')
  assert done.returncode == 1
  assert 'Traceback' not in said
  assert '--gin_file' in said
  if args != ['--help']:
    assert 'usage: python -m ipo_md' in said
    assert 'side_by_side' in said
  for module in ('tensorflow', 'seqio', 'orbax'):
    assert not any(line.split('|')[-1].strip() == module for line in imported)
