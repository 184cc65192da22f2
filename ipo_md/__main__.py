"""python -m ipo_md --gin_file=gin/runs/online.gin ... --gin.NAME=VALUE.

Parses the gin files in the order given, then the bindings, and calls the
function that the run file names: RUN = @training.train.
"""

import contextlib
import glob
import importlib.util
import os
import signal
import socket
import sys
import traceback

from absl import app
from absl import flags
from absl import logging
import gin
import jax
from jax._src import distributed

from ipo_md.core import gin_config

# TensorFlow reads data here and has nothing to say about devices.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')


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
  'coordinator_address', None, 'host:port of process 0; found on TPU by itself.'
)
_PROCESSES = flags.DEFINE_integer('num_processes', 1, 'How many there are.')
_PROCESS = flags.DEFINE_integer('process_id', 0, 'Which one this is.')
_TRACEBACK = flags.DEFINE_bool(
  'traceback', False, 'Show where an error of the configuration was raised.'
)


def start_processes() -> None:
  """Joins the other processes. Also alone: else SIGTERM kills, not saves."""
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
      # libtpu is here to compile alone; asking it for chips takes seconds.
      jax.config.update('jax_platforms', 'cpu')
    with socket.socket() as probe:
      probe.bind(('localhost', 0))
      port = probe.getsockname()[1]
    jax.distributed.initialize(f'localhost:{port}', 1, 0)


def _has_tpu() -> bool:
  """Whether TPU chips are attached, which libtpu alone does not say."""
  return bool(glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*'))


def run(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'What is {argv[1]!r}? See --help.')
  if not _GIN_FILE.value:
    raise app.UsageError('A run file is needed: --gin_file=gin/runs/....gin.')
  for path in [*_GIN_SEARCH_PATHS.value, gin_config.ROOT]:
    gin.add_config_file_search_path(path)
  start_processes()
  gin_config.parse(_GIN_FILE.value, _GIN_BINDINGS.value)
  function = gin.query_parameter('RUN/gin.macro.value')
  if function.configurable.selector != 'ipo_md.training.train':
    # There is no state to save; JAX would swallow the signal.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
  function.scoped_configurable_fn()


def main(argv: list[str]) -> None:
  # Orbax logs each thread's traceback of an error that is raised here too.
  logging.set_verbosity(logging.FATAL)
  try:
    run(argv)
  except Exception as error:
    expected = (ValueError, OSError, RuntimeError, FloatingPointError)
    try:
      if _TRACEBACK.value or not isinstance(error, expected):
        traceback.print_exc()
      else:
        message = '\n'.join([str(error), *getattr(error, '__notes__', ())])
        print(f'ipo_md: {type(error).__name__}: {message}', file=sys.stderr)
        print('(--traceback shows where.)', file=sys.stderr)
    finally:  # even if the disk that the errors go to is full
      leave()


def leave() -> None:
  """Ends with exit code 1.

  At a usual exit JAX waits 300 s for the other processes to end, too. If this
  one alone has failed they cannot, as they wait for it in a collective.
  """
  if distributed.global_state.num_processes > 1:
    with contextlib.suppress(OSError):
      sys.stdout.flush()
      sys.stderr.flush()
    os._exit(1)
  sys.exit(1)


if __name__ == '__main__':
  app.run(main, argv=gin_config.rewrite_gin_args(sys.argv))
