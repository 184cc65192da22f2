"""A cache of tokenised examples on disk, mapped into memory.

  CACHE_DIR/TASK-SPLIT-FINGERPRINT/
    info.json               the content of the fingerprint, dtypes and shapes
    inputs.bin ...          the columns of `data.chunks`, as raw arrays

A directory appears under its name only when it is complete. Each host has its
own cache on a local disk.

The fingerprint changes, and a new cache is made, with the task's name, split,
lengths, vocabularies and plain preprocessor arguments, MAX_BAD_ROWS, seqio's
version, the name, size and mtime of each source file, and the text of every
loaded module that shares a top-level package with the task's code (`describe`).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any
from typing import cast

from etils import epy
import numpy as np

from ipo_md.core import progress
from ipo_md.core import types
from ipo_md.data import chat as chat_lib
from ipo_md.data import examples
from ipo_md.data import splits

with epy.lazy_imports():
  import seqio


# Modules of this package on which the tokens depend.
_READERS = (
  'ipo_md.core.row_files',
  'ipo_md.core.row_paths',
  'ipo_md.core.row_tables',
  'ipo_md.data.chat',
  'ipo_md.data.chat_template',
  'ipo_md.data.conversations',
  'ipo_md.data.encoding',
  'ipo_md.data.example_checks',
  'ipo_md.data.examples',
  'ipo_md.data.hf_vocabulary',
  'ipo_md.data.rendering',
  'ipo_md.data.splits',
)


def load(
  task: seqio.Task,
  *,
  split: str,
  feature_lengths: Mapping[str, int],
  cache_dir: str,
  module: str | Sequence[str] | None = None,
  chat: chat_lib.Chat | None = None,
) -> examples.Examples:
  """Returns the examples of a task and makes their cache if there is none.

  Args:
    task: A task as for `data.tokenise`.
    split: Name of the split, or a range of its examples (`splits`).
    feature_lengths: Lengths as for `data.tokenise`.
    cache_dir: CACHE_DIR, a local directory.
    module: MIXTURE_OR_TASK_MODULE, whose package is part of the fingerprint.
    chat: The chat template, or None.

  Raises:
    ValueError: The directory is not local, or `data.tokenise` rejects a row.
  """
  if '://' in cache_dir:
    raise ValueError(
      f'CACHE_DIR {cache_dir} is not a local directory. Its files are mapped '
      'into memory, so each host needs its own.'
    )
  source = describe(task, split, feature_lengths, module, chat)
  text = json.dumps(source, sort_keys=True)
  fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
  name = _range(task, split).name
  path = os.path.join(cache_dir, f'{task.name}-{name}-{fingerprint}')
  columns = _read(path)
  if columns is None:
    os.makedirs(cache_dir, exist_ok=True)
    with _unfinished(cache_dir) as folder:
      _write(os.path.join(folder, 'cache'), task, split, source, chat)
      _publish(os.path.join(folder, 'cache'), path)
    columns = _read(path)
    if columns is None:
      raise ValueError(f'The cache {path} cannot be read back (CACHE_DIR).')
  return examples.from_columns(task.name, columns)


@contextlib.contextmanager
def _unfinished(cache_dir: str) -> Iterator[str]:
  """Makes a directory to write into and removes those of dead processes.

  A writer holds a lock in its directory, which the system releases when the
  process ends, however it ends. A directory gets its final name only after it
  is locked.
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
  """Holds the lock of a directory. Raises BlockingIOError if it is taken."""
  with open(folder / 'lock', 'r+') as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield


def describe(
  task: seqio.Task,
  split: str,
  feature_lengths: Mapping[str, int],
  module: str | Sequence[str] | None = None,
  chat: chat_lib.Chat | None = None,
) -> dict[str, Any]:
  """Returns everything that the fingerprint of a task covers, as JSON.

  The code of a task is the files of all loaded modules in the top-level
  packages of MIXTURE_OR_TASK_MODULE, of the preprocessors, of the source's
  class and functions, and of functions that `functools.partial` binds to one
  of these, such as all loaded `tasks.*`; and the modules of this package that
  read texts. The code of seqio and TensorFlow is covered by seqio's version
  alone.

  Args:
    task: A task as for `data.tokenise`.
    split: Name of the split, or a range of its examples (`splits`).
    feature_lengths: Lengths as for `data.tokenise`.
    module: MIXTURE_OR_TASK_MODULE.
    chat: The chat template, or None.
  """
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
    'files': _files(task.source, _range(task, split).name),
    # Rows that one run may leave out are an error in another.
    'MAX_BAD_ROWS': os.environ.get('MAX_BAD_ROWS', '0'),
    'code': _code(task, module),
    'chat': None if chat is None else chat.digest,
  }


def _range(task: seqio.Task, split: str) -> splits.Split:
  return splits.read(split, place=f'Task {task.name}', names=task.splits)


def _code(
  task: seqio.Task, module: str | Sequence[str] | None
) -> dict[str, str]:
  """Returns the digests of the source files of a task, by module."""
  named = [module] if isinstance(module, str) else list(module or ())
  source = [type(task.source), *vars(task.source).values()]
  for function in _functions([*task.preprocessors, *source]):
    named.append(getattr(function, '__module__', None) or '')
  packages = {name.partition('.')[0] for name in named}
  packages -= {'', 'seqio', 'tensorflow'}
  loaded = {
    name: getattr(found, '__file__', None)
    for name, found in sys.modules.items()
    if name.partition('.')[0] in packages
  }
  for name in _READERS:  # whether they have been imported yet or not
    spec = importlib.util.find_spec(name)
    loaded[name] = spec and spec.origin
  return {
    name: _digest(pathlib.Path(path).read_bytes())
    for name, path in sorted(loaded.items())
    if path is not None
  }


def _functions(values: Sequence[Any]) -> Iterator[Callable]:
  """Yields the functions among some values and those that partials bind."""
  for value in values:
    if isinstance(value, functools.partial):
      bound = [value.func, *value.args, *value.keywords.values()]
      yield from _functions(bound)
    elif callable(value):
      yield value


def _bound(function: Any) -> Any:
  """Describes a preprocessor and the plain arguments that a partial binds."""
  if not isinstance(function, functools.partial):
    return getattr(function, '__qualname__', type(function).__name__)
  return [_bound(function.func), _plain(function.keywords)]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the values whose `repr` is the same in every process."""
  plain = (str, int, float, bool, bytes, tuple, type(None))
  return {k: v for k, v in sorted(values.items()) if type(v) in plain}


def _vocabulary(vocabulary: types.Vocabulary) -> list[Any]:
  kind = type(vocabulary).__name__
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    model = cast(bytes, vocabulary.sp_model)  # seqio loads it on access
    return [kind, vocabulary.vocab_size, _digest(model)]
  return [kind, vocabulary.vocab_size, repr(_plain(vars(vocabulary)))]


def _files(source: seqio.DataSource, split: str) -> list[list[Any]]:
  """Returns the name, size and modification time of the source's files."""
  out = []
  for name in source.list_shards(split):
    stat = os.stat(name) if os.path.exists(name) else None
    out.append([name, stat and stat.st_size, stat and stat.st_mtime_ns])
  return out


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def _write(
  path: str,
  task: seqio.Task,
  split: str,
  source: Mapping[str, Any],
  chat: chat_lib.Chat | None,
) -> None:
  """Tokenises into the new directory `path`, a chunk at a time."""
  os.mkdir(path)
  read = _range(task, split)
  columns, files = {}, {}
  with contextlib.ExitStack() as stack:
    chunks = progress.progress(
      examples.chunks(task, split, source['feature_lengths'], chat),
      read.size(task.source.num_input_examples(read.name) or 0),
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


def _publish(made: str, path: str) -> None:
  try:
    os.replace(made, path)
  except OSError:
    # Another process was faster, or the existing cache is broken.
    if _read(path) is not None:
      return
    os.replace(path, os.path.join(os.path.dirname(made), 'broken'))
    os.replace(made, path)


def _read(path: str) -> dict[str, np.ndarray] | None:
  """Returns the columns of a cache, or None if it is absent or damaged."""
  info_path = os.path.join(path, 'info.json')
  if not os.path.exists(info_path):
    return None
  with open(info_path, 'rb') as file:
    text = file.read()
  try:
    described = json.loads(text)['columns']
  except (ValueError, KeyError, TypeError):
    print(f'{info_path} is damaged. The cache is made again.', file=sys.stderr)
    return None
  columns = {}
  for name, column in described.items():
    column_path = os.path.join(path, f'{name}.bin')
    dtype, shape = np.dtype(column['dtype']), tuple(column['shape'])
    size = dtype.itemsize * int(np.prod(shape))
    found = os.path.getsize(column_path) if os.path.exists(column_path) else -1
    if found != size:
      print(
        f'{column_path} has {found} bytes, not {size}. The cache is made '
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
