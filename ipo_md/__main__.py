"""The command line: python -m ipo_md --gin_file=gin/runs/online.gin ...

Parses the gin files in the order given, then the bindings, and calls the
function that the run file names: RUN = @training.train.
"""

import contextlib
import gc
import glob
import importlib.util
import os
import re
import signal
import socket
import sys
import traceback

# What is not there, an accelerator or a driver, is not worth a line.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from absl import app  # noqa: E402
from absl import flags  # noqa: E402
from absl import logging  # noqa: E402
import gin  # noqa: E402
import jax  # noqa: E402

from ipo_md.core import gin_config  # noqa: E402
from ipo_md.core import private_apis  # noqa: E402
from ipo_md.core import quiet_imports  # noqa: E402

_GIN_FILE = flags.DEFINE_multi_string(
  'gin_file', [], 'A gin file; give it again for more, later ones win.'
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], 'A binding, as --gin_bindings="TAU = 0.1".'
)
_GIN_SEARCH_PATHS = flags.DEFINE_list(
  'gin_search_paths', [], 'Folders in which gin files are looked for.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address',
  None,
  'host:port of process 0; found without it on TPU, by srun and by mpirun.',
)
_PROCESSES = flags.DEFINE_integer('num_processes', 1, 'Number of processes.')
_PROCESS = flags.DEFINE_integer('process_id', 0, 'Number of this process.')
_TRACEBACK = flags.DEFINE_bool(
  'traceback', False, 'Show where an error of the configuration was raised.'
)

# What launchers tell each process: how many there are, which one this is, and
# the variable without which JAX does not find process 0. JAX asks Open MPI
# before Slurm; Open MPI 5, MPICH and Intel MPI do not name process 0.
_LAUNCHERS = (
  ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'OMPI_MCA_orte_hnp_uri'),
  ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_STEP_NODELIST'),
  ('PMI_SIZE', 'PMI_RANK', ''),
)

# What gin says of functions, and Python of classes that gin calls.
_LACKING = re.compile(
  r'No values supplied by Gin or caller for arguments|'
  r'missing \d+ required (?:[\s\S]*)In call to configurable'
)

_USAGE = """\
usage: python -m ipo_md --gin_file=FILE ... [--gin.NAME=VALUE ...]

One run file, then the files of its axes, then settings; later ones win:

  python -m ipo_md --gin_file=gin/runs/supervised.gin \\
    --gin_file=gin/models/t5_tiny.gin --gin_file=gin/tasks/mini_tldr.gin \\
    --gin.MODEL_DIR=/tmp/supervised --gin.TRAIN_STEPS=100 --gin.BATCH_SIZE=32

Run files (gin/runs/NAME.gin; each says what it needs in its first lines):
{runs}
Axes: gin/models, gin/tasks, gin/judges, gin/algorithms. All flags: --help."""


def usage(problem: str) -> str:
  """Returns a short description of the command line, after what is wrong."""
  runs, line = [], ' '
  for name in gin_config.run_files():
    if len(line) + len(name) > 76:
      runs.append(line)
      line = ' '
    line += f' {name}'
  return f'ipo_md: {problem}\n\n' + _USAGE.format(runs='\n'.join([*runs, line]))


def start_processes() -> None:
  """Joins the other processes of a run.

  A lone process joins itself as well: JAX saves on SIGTERM only then.

  Raises:
    ValueError: Flags are missing or do not fit, or this is one of several
      processes and none of them is known to be the first.
  """
  _check_processes()
  if _COORDINATOR.value:
    jax.distributed.initialize(
      _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    )
  elif _has_tpu() and 'cpu' not in os.environ.get('JAX_PLATFORMS', ''):
    jax.distributed.initialize()
  else:
    if importlib.util.find_spec('libtpu') and not (
      'JAX_PLATFORMS' in os.environ or os.path.exists('/dev/nvidia0')
    ):
      # libtpu is installed to compile only; asking it for chips takes seconds.
      jax.config.update('jax_platforms', 'cpu')
    if not _join_launched():
      with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
      # Detection would give a lone task of Slurm one GPU of its node.
      jax.distributed.initialize(
        f'localhost:{port}', 1, 0, cluster_detection_method='deactivate'
      )


def _join_launched() -> bool:
  """Joins the processes that srun, mpirun or Kubernetes started with this one.

  Returns:
    Whether there are any; False if this process is alone.

  Raises:
    ValueError: There are others, but JAX cannot tell which one is process 0.
  """
  launchers = [row for row in _LAUNCHERS if row[1] in os.environ]
  several = [row for row in launchers if os.environ.get(row[0], '1') != '1']
  kubernetes = 'KUBERNETES_SERVICE_HOST' in os.environ and not _has_tpu()
  if not several and (launchers or not kubernetes):
    return False
  if several:
    size, rank, address = several[0]
    if address not in os.environ:
      raise ValueError(
        f'{size}={os.environ[size]} and {rank}={os.environ[rank]}: this is one '
        'of several processes, but nothing says where process 0 is. Start them '
        'with srun (`srun --ntasks=1` for one alone) or give each one '
        f'--coordinator_address=HOST:PORT --num_processes=${size} '
        f'--process_id=${rank}.'
      )
  try:
    jax.distributed.initialize()
  except ValueError as error:
    if several or 'coordinator_address' not in str(error):
      raise
    return False
  return True


def _check_processes() -> None:
  """Refuses flags of which some processes alone would make a run of their own.

  Raises:
    ValueError: Names the flags that are missing or do not fit.
  """
  flags_ = (_COORDINATOR, _PROCESSES, _PROCESS)
  given = [flag for flag in flags_ if flag.present]
  missing = [f'--{flag.name}' for flag in flags_ if not flag.present]
  if given and missing:
    raise ValueError(
      f'--{given[0].name}={given[0].value} needs {" and ".join(missing)}, too. '
      'Every process takes all three flags, or none where the processes find '
      'each other.'
    )
  if not given:
    return
  if not 0 <= _PROCESS.value < _PROCESSES.value:
    raise ValueError(
      f'--process_id={_PROCESS.value} is not between 0 and '
      f'{_PROCESSES.value - 1} (--num_processes={_PROCESSES.value}).'
    )
  host, colon, port = (_COORDINATOR.value or '').rpartition(':')
  if not (host and colon and port.isdigit()):
    raise ValueError(
      f'--coordinator_address={_COORDINATOR.value} is not HOST:PORT, the '
      'address of process 0.'
    )


def compare_processes(config: str) -> None:
  """Checks that all processes of a run have the same configuration.

  Args:
    config: All bindings, as `gin.config_str()` gives them.

  Raises:
    ValueError: Names the bindings that differ. All processes raise it.
  """
  first, *others = private_apis.exchange(config)
  for n, other in enumerate(others, 1):
    if other != first:
      differing = sorted(set(first.splitlines()) ^ set(other.splitlines()))
      raise ValueError(
        f'Processes 0 and {n} have different bindings; give every process the '
        'same command but for --process_id:\n  '
        + '\n  '.join(
          line + (' (process 0)' if line in first.splitlines() else '')
          for line in differing[:12]
        )
      )


def _has_tpu() -> bool:
  """Returns whether TPU chips are attached, which libtpu alone does not say."""
  return bool(glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*'))


def run(argv: list[str]) -> None:
  """Parses gin files and bindings, and calls the function of the run file."""
  if len(argv) > 1:
    problem = f'{argv[1]!r} is not a flag.'
    if argv[1].endswith('.gin'):
      problem += f' Did you mean --gin_file={argv[1]}?'
    raise SystemExit(usage(problem))
  if not _GIN_FILE.value:
    raise SystemExit(usage('a run file is needed.'))
  for path in _GIN_SEARCH_PATHS.value:
    gin.add_config_file_search_path(path)
  gin_config.add_root()
  start_processes()
  gin_config.parse(_GIN_FILE.value, _GIN_BINDINGS.value)
  compare_processes(gin.config_str())
  function = gin.query_parameter('RUN/gin.macro.value').scoped_configurable_fn
  if not getattr(function, 'saves_on_sigterm', False):
    # There is no state to save; JAX would swallow the signal.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
  # What is imported stays. Looking for garbage in it, again and again, takes a
  # third of the time of tokenising (docs/bring_your_own.md).
  gc.collect()
  gc.freeze()
  function()


def main(argv: list[str]) -> None:
  # Orbax logs the traceback of each thread in which an error is raised too.
  logging.set_verbosity(logging.FATAL)
  quiet_imports.install()
  try:
    run(argv)
  except Exception as error:
    expected = (ValueError, OSError, RuntimeError, FloatingPointError)
    try:
      known = isinstance(error, expected) or _lacks_arguments(error)
      if _TRACEBACK.value or not known:
        traceback.print_exc()
      else:
        message = error_text(error)
        print(f'ipo_md: {type(error).__name__}: {message}', file=sys.stderr)
        print('(--traceback shows where.)', file=sys.stderr)
    finally:  # even if the disk that the errors go to is full
      leave()


def error_text(error: BaseException) -> str:
  """Returns an error's text and notes without what gin and JAX add to them."""
  notes = [
    note
    for note in getattr(error, '__notes__', ())
    if 'JAX has removed its internal frames' not in note
  ]
  text = re.sub(r'\n *In call to configurable .*', '', str(error))
  if _lacks_arguments(error):
    text = (
      f'{text.splitlines()[0]}. Bind them, or leave out the brackets of the '
      '@reference if the function itself is meant.'
    )
  return '\n'.join([text, *notes])


def _lacks_arguments(error: BaseException) -> bool:
  """Returns whether gin called a function whose arguments are not all bound."""
  return isinstance(error, TypeError) and bool(_LACKING.search(str(error)))


def leave() -> None:
  """Exits with code 1.

  At a usual exit JAX waits 300 s for the other processes to exit, too. If this
  one alone has failed they cannot, as they wait for it in a collective.
  """
  if private_apis.process_count() > 1:
    with contextlib.suppress(OSError):
      sys.stdout.flush()
      sys.stderr.flush()
    os._exit(1)
  sys.exit(1)


if __name__ == '__main__':
  app.run(main, argv=gin_config.rewrite_gin_args(sys.argv))
