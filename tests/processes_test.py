"""The command line as a process: SIGTERM, other processes, one owner."""

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
from ipo_md.core import sharding
from tasks.mini_tldr import tasks
from tests import command_line

pytestmark = pytest.mark.slow

_ROOT = command_line.ROOT
arguments = command_line.arguments
call_fixture = command_line.call_fixture
error_of = command_line.error_of


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
    jax.distributed, 'initialize', lambda *args, **_: joined.append(args)
  )
  monkeypatch.setattr(jax.config, 'update', lambda k, v: set_.append(k))
  for name in ('coordinator_address', 'num_processes', 'process_id'):
    flags.FLAGS[name].unparse()
  flags.FLAGS(['ipo_md'])
  main.start_processes()
  assert (joined == [()]) == cluster
  assert cluster or joined[0][1:] == (1, 0)
  assert set_ == config


_SLURM = {
  'SLURM_JOB_ID': '{port}',
  'SLURM_STEP_NODELIST': 'localhost',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '{rank}',
  'SLURM_LOCALID': '{rank}',
}
_OPEN_MPI = {
  'OMPI_MCA_orte_hnp_uri': '{jobs}.0;tcp://127.0.0.1:34911',
  'OMPI_COMM_WORLD_SIZE': '2',
  'OMPI_COMM_WORLD_RANK': '{rank}',
  'OMPI_COMM_WORLD_LOCAL_RANK': '{rank}',
}


@pytest.mark.parametrize('launcher', [_SLURM, _OPEN_MPI])
def test_what_a_launcher_starts_is_one_run(launcher):
  """Two processes that know no more than srun or mpirun tells them."""
  program = (
    'from absl import flags\nfrom ipo_md import __main__ as main\n'
    'flags.FLAGS(["ipo_md"])\nmain.start_processes()\nimport jax\n'
    'print(jax.process_index(), jax.process_count(), jax.device_count())'
  )
  port = os.getpid() % 4096  # JAX takes the port from the number of the job
  started = []
  for rank in range(2):
    told = {
      name: value.format(rank=rank, port=port, jobs=port * 4096)
      for name, value in launcher.items()
    }
    started.append(
      subprocess.Popen(
        [sys.executable, '-c', program],
        cwd=_ROOT,
        env=os.environ | told | {'XLA_FLAGS': ''},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  said = [process.communicate(timeout=120) for process in started]
  assert [out for out, _ in said] == ['0 2 2\n', '1 2 2\n'], said


@pytest.mark.parametrize(
  ('told', 'cure'),
  [
    ({'SLURM_NTASKS': '2', 'SLURM_PROCID': '0'}, 'Start them with srun'),
    (
      {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '1'},
      '--process_id=$OMPI_COMM_WORLD_RANK',
    ),
    ({'PMI_SIZE': '4', 'PMI_RANK': '3'}, '--num_processes=$PMI_SIZE'),
  ],
)
def test_one_of_several_tasks_does_not_run_alone(monkeypatch, told, cure):
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *_, **__: pytest.fail('it runs')
  )
  for name, value in told.items():
    monkeypatch.setenv(name, value)
  flags.FLAGS(['ipo_md'])
  with pytest.raises(ValueError, match='one of several') as raised:
    main.start_processes()
  assert cure in str(raised.value)


@pytest.mark.parametrize('found', [True, False])
def test_a_pod_of_kubernetes_joins_what_jax_finds(monkeypatch, found):
  joined = []

  def initialize(*args, **_):
    joined.append(args[1:])
    if not args and not found:
      raise ValueError('coordinator_address should be defined.')  # as JAX does

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  monkeypatch.setenv('KUBERNETES_SERVICE_HOST', '10.0.0.1')
  flags.FLAGS(['ipo_md'])
  main.start_processes()
  assert joined == ([()] if found else [(), (1, 0)])


def test_a_lone_task_has_all_devices_of_its_node(monkeypatch):
  joined = []
  monkeypatch.setattr(
    jax.distributed,
    'initialize',
    lambda *args, **options: joined.append((args[1:], options)),
  )
  for name, value in (_SLURM | {'SLURM_NTASKS': '1'}).items():
    monkeypatch.setenv(name, value.format(rank=0, port=7))
  flags.FLAGS(['ipo_md'])
  main.start_processes()
  assert joined == [((1, 0), {'cluster_detection_method': 'deactivate'})]
