"""Tokenised examples on disk: made at first use, mapped into memory after.

  CACHE_DIR/TASK-SPLIT-FINGERPRINT/
    info.json               what the fingerprint is of; dtypes and shapes
    inputs.bin ...          the columns of `data.chunks`, as raw arrays

A cache appears under its name only when it is whole. Another vocabulary, other
lengths, other files or other code of the task have another fingerprint, hence
another cache. Each host keeps its own, on a local disk.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import fcntl
import functools
import hashlib
import inspect
import json
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import numpy as np
import seqio

from ipo_md.core import progress
from ipo_md.data import examples


def load(
  task: seqio.Task,
  *,
  split: str,
  feature_lengths: Mapping[str, int],
  cache_dir: str,
) -> examples.Examples:
  """The examples of a task, from its cache if there is one.

  Args:
    task: as for `data.tokenise`.
    split: of the task.
    feature_lengths: as for `data.tokenise`.
    cache_dir: CACHE_DIR, a local directory.

  Raises:
    ValueError: it is not local, or `data.tokenise` refuses a row.
  """
  if '://' in cache_dir:
    raise ValueError(
      f'CACHE_DIR {cache_dir} is not a local directory: its files are mapped '
      'into memory, and each host keeps its own.'
    )
  source = describe(task, split, feature_lengths)
  text = json.dumps(source, sort_keys=True)
  fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
  path = os.path.join(cache_dir, f'{task.name}-{split}-{fingerprint}')
  columns = _read(path)
  if columns is None:
    os.makedirs(cache_dir, exist_ok=True)
    with _unfinished(cache_dir) as folder:
      _write(os.path.join(folder, 'cache'), task, split, source)
      _publish(os.path.join(folder, 'cache'), path)
    columns = _read(path)
    if columns is None:
      raise ValueError(f'The cache {path} cannot be read back (CACHE_DIR).')
  return examples.from_columns(task.name, columns)


@contextlib.contextmanager
def _unfinished(cache_dir: str) -> Iterator[str]:
  """A new directory to write into; removes those of processes that are gone.

  A writer holds a lock in its directory, which the system takes away with the
  process, however it ends. A directory has its last name once it is locked.
  """
  for old in pathlib.Path(cache_dir).glob('unfinished-*'):
    with contextlib.suppress(OSError), _locked(old):  # in use, or removed
      shutil.rmtree(old)
  made = pathlib.Path(tempfile.mkdtemp(dir=cache_dir, prefix='new-'))
  (made / 'lock').touch()
  with _locked(made):
    folder = made.rename(made.with_name(f'unfinished-{made.name[4:]}'))
    try:
      yield str(folder)
    finally:
      shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """Holds the lock in a directory; raises BlockingIOError if another does."""
  with open(folder / 'lock', 'r+') as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield


def describe(
  task: seqio.Task, split: str, feature_lengths: Mapping[str, int]
) -> dict[str, Any]:
  """What the tokens of a task depend on, as JSON."""
  modules = {examples.__name__: examples}
  functions = [*task.preprocessors, *vars(task.source).values()]
  for function in _with_closures(functions):
    module = inspect.getmodule(function)
    if module is not None and not module.__name__.startswith('seqio.'):
      modules |= _reached(module)
  return {
    'task': task.name,
    'split': split,
    'feature_lengths': dict(feature_lengths),
    'versions': {'seqio': seqio.__version__},
    'preprocessors': [repr(_bound(p)) for p in task.preprocessors],
    'vocabularies': {
      name: _vocabulary(feature.vocabulary)
      for name, feature in task.output_features.items()
    },
    'files': _files(task.source, split),
    # Rows that one run may leave out are an error of another.
    'MAX_BAD_ROWS': os.environ.get('MAX_BAD_ROWS', '0'),
    'code': {
      name: _digest(pathlib.Path(module.__file__).read_bytes())
      for name, module in sorted(modules.items())
      if getattr(module, '__file__', None)
    },
  }


def _with_closures(values: Iterable[Any]) -> Iterator[Callable]:
  """The functions among some values, and those that they are made of."""
  pending, seen = list(values), set()
  while pending:
    function = pending.pop()
    if isinstance(function, functools.partial):
      function = function.func
    function = inspect.unwrap(function) if callable(function) else None
    if not inspect.isfunction(function) or function in seen:
      continue
    seen.add(function)
    yield function
    pending += [cell.cell_contents for cell in function.__closure__ or ()]


def _bound(function: Any) -> Any:
  """The arguments of a partial, for a fingerprint: plain values alone."""
  if not isinstance(function, functools.partial):
    return getattr(function, '__qualname__', type(function).__name__)
  return [_bound(function.func), _plain(function.keywords)]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
  """Those whose text is the same in every process."""
  plain = (str, int, float, bool, bytes, tuple, type(None))
  return {k: v for k, v in sorted(values.items()) if type(v) in plain}


def _reached(module: Any) -> dict[str, Any]:
  """A module and those of its package that its globals name."""
  package = module.__name__.split('.')[0]
  found, pending = {}, [module]
  while pending:
    module = pending.pop()
    if module.__name__ in found:
      continue
    found[module.__name__] = module
    pending += [
      m
      for m in vars(module).values()
      if inspect.ismodule(m) and m.__name__.split('.')[0] == package
    ]
  return found


def _vocabulary(vocabulary: seqio.Vocabulary) -> list[Any]:
  kind = type(vocabulary).__name__
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return [kind, vocabulary.vocab_size, _digest(vocabulary.sp_model)]
  return [kind, vocabulary.vocab_size, repr(_plain(vars(vocabulary)))]


def _files(source: seqio.DataSource, split: str) -> list[list[Any]]:
  """Name, size and time of change of the source's files."""
  out = []
  for name in source.list_shards(split):
    stat = os.stat(name) if os.path.exists(name) else None
    out.append([name, stat and stat.st_size, stat and stat.st_mtime_ns])
  return out


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def _write(path: str, task: seqio.Task, split: str, source: Mapping[str, Any]):
  """Tokenises into the directory `path`, a chunk at a time."""
  os.mkdir(path)
  columns, files = {}, {}
  with contextlib.ExitStack() as stack:
    chunks = progress.progress(
      examples.chunks(task, split, source['feature_lengths']),
      task.source.num_input_examples(split) or 0,
      f'tokenising {task.name}, {split}',
      size=lambda chunk: len(chunk['inputs_lengths']),
    )
    for chunk in chunks:
      for name, values in chunk.items():
        if name not in files:
          columns[name] = {
            'dtype': values.dtype.name,
            'shape': [0, *values.shape[1:]],
          }
          files[name] = stack.enter_context(
            open(os.path.join(path, f'{name}.bin'), 'wb')
          )
        values.tofile(files[name])
        columns[name]['shape'][0] += len(values)
  with open(os.path.join(path, 'info.json'), 'w') as file:
    json.dump({'source': source, 'columns': columns}, file, indent=1)


def _publish(made: str, path: str):
  try:
    os.replace(made, path)
  except OSError:
    # Another process was faster, or what lies there is broken.
    if _read(path) is not None:
      return
    os.replace(path, os.path.join(os.path.dirname(made), 'broken'))
    os.replace(made, path)


def _read(path: str) -> dict[str, np.ndarray] | None:
  """The columns of a cache; None if it is not there or not whole."""
  info_path = os.path.join(path, 'info.json')
  if not os.path.exists(info_path):
    return None
  with open(info_path, 'rb') as file:
    text = file.read()
  try:
    described = json.loads(text)['columns']
  except (ValueError, KeyError, TypeError):
    print(f'{info_path} is damaged; the cache is made again.', file=sys.stderr)
    return None
  columns = {}
  for name, column in described.items():
    column_path = os.path.join(path, f'{name}.bin')
    dtype, shape = np.dtype(column['dtype']), tuple(column['shape'])
    size = dtype.itemsize * int(np.prod(shape))
    found = os.path.getsize(column_path) if os.path.exists(column_path) else -1
    if found != size:
      print(
        f'{column_path} has {found} bytes, not {size}; the cache is made '
        'again.',
        file=sys.stderr,
      )
      return None
    columns[name] = (
      np.memmap(column_path, dtype, 'r', shape=shape)
      if size
      else np.zeros(shape, dtype)
    )
  return columns
