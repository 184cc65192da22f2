"""What a run reads by path, and whether it is still what it was.

  MODEL_DIR/inputs.json   setting -> path and digest of what it names

Equal bindings do not guarantee equal inputs: a tokenizer or a data file may be
replaced under its path, and a MODEL_DIR that serves as a reference may have
been trained on. `of_run` finds the inputs in the bindings of the run. A text
that names an existing file is an input by itself. The function or class that
takes the path of a folder, or the name of a module, declares what identifies
it with `reads`.
"""

import ast
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
from typing import Any
from typing import TypeVar

from etils import epath
import numpy as np

from ipo_md.core import paths
from ipo_md.core import private_apis

FILE = 'inputs.json'
_WHOLE = 16 * 2**20  # bytes; a file up to this size is read as a whole
_BLOCK = 4096  # bytes read at a place of a larger file
_PLACES = 1024  # of a larger file on a disk
_REMOTE_PLACES = 3  # of a larger file in a bucket, where reads are slow

_Target = TypeVar('_Target', bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
  """What a path named when it was looked at.

  Attributes:
    path: Resolved path, for messages.
    digest: Text that differs if the content does.
  """

  path: str
  digest: str


# (path, name of the setting) -> its identity, None if nothing is there.
Identify = Callable[[str, str], Identity | None]
Inputs = Mapping[str, Identity]


def reads(**parameters: Identify) -> Callable[[_Target], _Target]:
  """Declares parameters that name something which a run reads.

    @identity.reads(checkpoint_path=checkpoints.identify)

  Args:
    **parameters: What identifies the value of a parameter, or each text in it.
  """

  def attach(target: _Target) -> _Target:
    target.reads = parameters  # pyright: ignore[reportFunctionMemberAccess]  # typeshed's functions lack it
    return target

  return attach


def of_run() -> dict[str, Identity]:
  """Returns the identity of everything that the bindings of the run name.

  Modules that the gin files refer to count, unless they are of this package or
  of an installed one.

  What does not exist is left out: whatever reads it will say so. So is what a
  resumed run may change (see `bindings`), such as a tracker.
  """
  found = {}
  for target, place, parameter, value in private_apis.used_bindings(
    lambda target, parameter: parameter not in getattr(target, 'may_change', ())
  ):
    module = getattr(target, '__module__', None) or ''
    if _is_code_of_a_user(module) and module not in found:
      found[module] = of_module(module, place)
    identify = getattr(target, 'reads', {}).get(parameter, _of_named_file)
    for name, text in _texts(f'{place}.{parameter}', value):
      # Of several that read one macro, any may know what its path names.
      if found.get(name) is None:
        found[name] = identify(text, name)
  return {k: v for k, v in sorted(found.items()) if v is not None}


def _texts(name: str, value: Any, named: bool = False) -> Iterator[Any]:
  """Yields the texts in a bound value, each with the name of its setting."""
  if (macro := private_apis.macro_of(value)) is not None:
    yield from _texts(
      name if named else macro, private_apis.value_of(macro), True
    )
  elif isinstance(value, Mapping):
    for key, item in value.items():
      yield from _texts(f'{name}[{key!r}]', item)
  elif isinstance(value, list | tuple):
    for i, item in enumerate(value):
      yield from _texts(f'{name}[{i}]', item)
  elif isinstance(value, str) and value:
    yield name, value


def _of_named_file(text: str, name: str) -> Identity | None:
  """Identifies a text that may be anything, if it names a file."""
  if '/' not in text and '.' not in text or '\n' in text or '\0' in text:
    return None
  if '://' in text or len(text) > 4096:
    return None
  path = paths.absolute(text, name)
  return of_file(path, name) if os.path.isfile(path) else None


def of_file(path: str, name: str) -> Identity | None:
  """Identifies a file, cheaply if it is large.

  A file of up to 16 MiB is hashed as a whole. Of a larger one the size and
  blocks at 1,024 places are, and in a bucket the size, blocks at three places
  and the time at which it was written.

  Args:
    path: Path of the file.
    name: Name of the setting that holds it, for error messages.
  """
  file = epath.Path(paths.absolute(path, name))
  if not file.exists() or file.is_dir():
    return None
  return Identity(path=str(file), digest=_digest_of([(file.name, file)]))


def of_files(
  folder: epath.Path, names: Callable[[str], bool] = lambda name: True
) -> str:
  """Returns a digest of the names and contents of the files in a folder.

  Args:
    folder: Folder, which is searched in depth.
    names: Whether the file of a path, relative to the folder, counts.
  """
  found = []
  todo = [folder]
  while todo:
    for child in todo.pop().iterdir():
      name = str(child)[len(str(folder)) :].lstrip('/')
      if child.is_dir():
        todo.append(child)
      elif names(name):
        found.append((name, child))
  return _digest_of(sorted(found))


def _digest_of(files: list[tuple[str, epath.Path]]) -> str:
  digest = hashlib.sha256()
  for name, path in files:
    remote = '://' in str(path)
    stat = path.stat()
    digest.update(f'{name} {stat.length}\n'.encode())
    if stat.length <= _WHOLE and not remote:
      digest.update(path.read_bytes())
      continue
    if remote:
      digest.update(f'{int(stat.mtime)}\n'.encode())
    last = max(0, stat.length - _BLOCK)
    places = min(_REMOTE_PLACES if remote else _PLACES, last + 1)
    with path.open('rb') as file:
      for i in range(places):
        file.seek(last * i // max(1, places - 1))
        digest.update(file.read(_BLOCK))
  return digest.hexdigest()[:16]


def of_arrays(arrays: Sequence[np.ndarray]) -> str:
  """Returns a digest of the sizes of arrays and of their bytes.

  Of an array of more than 16 MiB blocks at 1,024 places are read.
  """
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(f'{array.dtype} {array.shape}\n'.encode())
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if content.size <= _WHOLE:
      digest.update(content.tobytes())
      continue
    last = content.size - _BLOCK
    for i in range(_PLACES):
      at = last * i // (_PLACES - 1)
      digest.update(content[at : at + _BLOCK].tobytes())
  return digest.hexdigest()[:16]


def of_module(module: str, name: str) -> Identity | None:
  """Identifies the code of a module and what it imports of its own package.

  Comments and docstrings do not count.

  Nothing is imported but the packages that the modules lie in.

  Args:
    module: Name of the module.
    name: Name of the setting that holds it, for error messages.
  """
  del name
  todo, sources = [module], {}
  first = None
  while todo:
    current = todo.pop()
    origin = _origin(current)
    if current in sources or origin is None:
      continue
    first = first or origin
    with open(origin, 'rb') as file:
      source = file.read()
    try:
      tree = ast.parse(source)
    except SyntaxError:  # the module's reader will say so
      sources[current] = source
      continue
    is_package = origin.endswith('__init__.py')
    inside = current if is_package else current.rpartition('.')[0]
    todo += _imports(tree, module.partition('.')[0], inside)
    sources[current] = _plain(tree).encode()
  if first is None:
    return None
  digest = hashlib.sha256()
  for key in sorted(sources):
    digest.update(key.encode() + b'\0' + sources[key])
  return Identity(path=first, digest=digest.hexdigest()[:16])


def _is_code_of_a_user(module: str) -> bool:
  """Returns whether a module is neither this package's nor an installed one."""
  if module.partition('.')[0] == __name__.partition('.')[0]:
    return False
  origin = _origin(module)
  return origin is not None and not set(pathlib.Path(origin).parts) & {
    'site-packages',
    'dist-packages',
  }


def _origin(module: str) -> str | None:
  try:
    spec = importlib.util.find_spec(module)
  except (ImportError, ValueError):  # the module's reader will say so
    return None
  origin = spec and spec.origin
  return origin if origin and origin.endswith('.py') else None


def _plain(tree: ast.Module) -> str:
  """Returns a source without comments and docstrings; changes the tree."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      node.value = ast.Constant(value=None)
  return ast.unparse(tree)


def _imports(tree: ast.Module, package: str, inside: str) -> list[str]:
  """Returns the modules of a package that a source may import.

  Args:
    tree: The source.
    package: Name of the package at the top level.
    inside: Package that relative imports of the source start from.
  """
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      name = '.' * node.level + (node.module or '')
      try:
        module = importlib.util.resolve_name(name, inside)
      except ImportError:  # beyond the package; the import itself will say so
        continue
      found += [module, *(f'{module}.{alias.name}' for alias in node.names)]
  return [n for n in found if n.partition('.')[0] == package]


def read(folder: epath.Path) -> dict[str, Identity]:
  """Returns the inputs that a MODEL_DIR was made from, as far as is known."""
  path = folder / FILE
  if not path.exists():
    return {}
  try:
    return {
      name: Identity(path=item['path'], digest=item['digest'])
      for name, item in json.loads(path.read_text()).items()
    }
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(
      f'{path} is damaged ({error!r}). Remove it to accept the inputs of this '
      'run as they are now.'
    ) from error


def write(folder: epath.Path, inputs: Inputs) -> None:
  """Writes inputs.json, whole or not at all."""
  content = {name: dataclasses.asdict(inputs[name]) for name in sorted(inputs)}
  partial = folder / f'{FILE}.partial'
  partial.write_text(json.dumps(content, indent=1) + '\n')
  partial.replace(folder / FILE)


def changes(before: Inputs, now: Inputs) -> list[str]:
  """Describes the inputs whose content differs, one a line.

  An input that is known on one side alone is no change. It may have been
  removed after the run had read it.

  Args:
    before: Inputs that MODEL_DIR was made from.
    now: Inputs of this run.
  """
  return [
    f'{name}: {before[name].path} ({before[name].digest}) then, '
    f'{now[name].path} ({now[name].digest}) now'
    for name in sorted(before.keys() & now.keys())
    if before[name].digest != now[name].digest
  ]
