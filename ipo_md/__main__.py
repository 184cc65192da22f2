"""python -m ipo_md --gin_file=gin/runs/online.gin ... --gin.NAME=VALUE.

Parses the gin files in the order given, then the bindings, and calls the
function that the run file names: RUN = @train.train.
"""

from collections.abc import Sequence
import contextlib
import difflib
import glob
import importlib.util
import io
import os
import pathlib
import re
import signal
import socket
import sys
import tokenize
import traceback

from absl import app
from absl import flags
from absl import logging
import gin
import jax
from jax._src import distributed

# TensorFlow reads data here and has nothing to say about devices.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

# Of the checkout: 'gin/runs/online.gin' is found from any folder.
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Folders whose files set what run files leave open.
_AXES = ('models', 'tasks', 'judges', 'algorithms')

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


def rewrite_gin_args(args: list[str]) -> list[str]:
  """--gin.NAME=VALUE -> --gin_bindings=NAME = VALUE, as in T5X.

  Args:
    args: of the command line.

  Raises:
    SystemExit: there is no value; before absl could raise anything clearer.
  """
  out = []
  for arg in args:
    for prefix in ('--gin.', '-gin.'):
      if arg.startswith(prefix):
        name, equals, value = arg[len(prefix) :].partition('=')
        if not equals:
          raise SystemExit(f'ipo_md: {arg}: write --gin.{name}=VALUE.')
        arg = f'--gin_bindings={name} = {value}'
        break
    out.append(arg)
  return out


def parse(files: Sequence[str], bindings: Sequence[str]) -> None:
  """gin files, then bindings. A ValueError says what cannot be read."""
  for binding in bindings:
    check_keys(binding)
  try:
    gin.parse_config_files_and_bindings(files, bindings, finalize_config=False)
  except SyntaxError as error:
    place = f'{error.filename or "bindings"}, line {error.lineno}'
    raise ValueError(
      f'{place}: {error.msg} {(error.text or "").strip()}\n(A text needs '
      'quotes: --gin.MODEL_DIR="\'/tmp/x\'".)'
    ) from error
  except (AttributeError, ImportError, NameError) as error:
    raise ValueError(str(error)) from error
  check_macros(bindings)
  gin.finalize()


def check_keys(binding: str) -> None:
  """Refuses a key that a dictionary has twice, of which gin drops the first.

  Args:
    binding: such as "POLICIES = {'ipo': 'a', 'ipo': 'b'}".
  """
  open_ = []  # the keys so far of each bracket that is open
  last = ''
  try:
    for token in tokenize.generate_tokens(io.StringIO(binding).readline):
      if token.string in ('{', '[', '('):
        open_.append(set())
      elif token.string in ('}', ']', ')') and open_:
        open_.pop()
      elif token.string == ':' and open_:
        if last in open_[-1]:
          raise ValueError(f'{binding}: the name {last} is there twice.')
        open_[-1].add(last)
      last = token.string
  except (tokenize.TokenError, SyntaxError):
    pass  # gin says what is wrong with it


def check_macros(bindings: Sequence[str]) -> None:
  """Refuses a macro that nothing refers to: most likely it is misspelt.

  gin accepts it in silence, and a sweep over it is N identical runs. A macro of
  a gin file may be there for other runs, so any run file may refer to it. Then
  refuses a reference to a macro that nothing sets.

  Args:
    bindings: of the command line; what they set, this run must use.
  """
  config = gin.config._CONFIG  # pylint: disable=protected-access
  bound = {scope for scope, selector in config if selector == 'gin.macro'}
  given = {b.partition('=')[0].strip() for b in bindings}
  macro = gin.get_configurable('gin.macro')
  references = gin.config.iterate_references(config, to=macro)
  used = {'/'.join(r.scopes) for r in references} | {'RUN'}
  known, setters = set(used), {}
  for path in sorted(pathlib.Path(_ROOT, 'gin').rglob('*.gin')):
    known |= set(re.findall(r'%(\w+)', path.read_text()))
    for name in re.findall(r'^([A-Z_]+) =', path.read_text(), re.MULTILINE):
      if path.parent.name in _AXES or name == 'RUN':
        setters[name] = f' (by a file of gin/{path.parent.name})'
  for name in sorted(bound - used):
    if name in given or name not in known:
      near = difflib.get_close_matches(name, sorted(used), n=3)
      raise ValueError(
        f'{name} is set, but nothing in this run refers to it.'
        + (f' Did you mean {" or ".join(near)}?' if near else '')
      )
  if missing := [n + setters.get(n, '') for n in sorted(used - bound)]:
    raise ValueError(
      f'Not set, but needed: {", ".join(missing)}. Set it with '
      '--gin.NAME=VALUE or a gin file.'
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
  for path in [*_GIN_SEARCH_PATHS.value, _ROOT]:
    gin.add_config_file_search_path(path)
  start_processes()
  parse(_GIN_FILE.value, _GIN_BINDINGS.value)
  function = gin.query_parameter('RUN/gin.macro.value')
  if function.configurable.selector != 'ipo_md.train.train':
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
  app.run(main, argv=rewrite_gin_args(sys.argv))
