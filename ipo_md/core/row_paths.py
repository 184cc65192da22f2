"""The files of rows that a path stands for: a file, a folder or a pattern."""

import hashlib
import os
import re

from etils import epath

from ipo_md.core import identity
from ipo_md.core import paths


def files(path: str, name: str = '') -> list[str]:
  """Returns the files that a path stands for, in their order.

    files('data/train-*.parquet'), files('saved/train'), files('train.jsonl')

  Args:
    path: A file, a pattern with *, a folder that `datasets` saved, or a folder
      of Parquet files.
    name: What the path is, for messages.

  Raises:
    ValueError: There is none.
  """
  named = f' ({name})' if name else ''
  place = epath.Path(path) if path else None
  if place is not None and '*' in place.name and not place.exists():
    found = sorted(place.parent.glob(place.name))
    if not found:
      raise ValueError(f'No file matches {path}{named}.')
    return [os.fspath(file) for file in found]
  if place is None or not place.exists():
    raise ValueError(f'There is no file {path}{named}.')
  if not place.is_dir():
    return [path]
  if (place / 'dataset_dict.json').exists():
    splits = sorted(child.name for child in place.iterdir() if child.is_dir())
    raise ValueError(
      f'{path}{named} is a folder of the splits {", ".join(splits)}. Name the '
      f'folder of one, such as {place / splits[0] if splits else place}.'
    )
  for form in ('data-*.arrow', '*.arrow', '*.parquet'):
    found = sorted(place.glob(form), key=lambda file: _numbered(file.name))
    if found:
      return [os.fspath(file) for file in found]
  raise ValueError(
    f'{path}{named} cannot be read: it is a folder without files of Arrow or '
    'Parquet.'
  )


def _numbered(name: str) -> list[tuple[int, str]]:
  """Returns a key that sorts data-10 behind data-9."""
  return [
    (int(p or 0), '') if p.isdigit() else (0, p)
    for p in re.split(r'(\d+)', name)
  ]


def identify(path: str, name: str) -> identity.Identity | None:
  """Identifies the files that a path stands for.

  Args:
    path: Path as for `files`.
    name: Name of the setting that holds it, for error messages.
  """
  path = paths.absolute(path, name)
  try:
    found = [identity.of_file(file, name) for file in files(path, name)]
  except ValueError:  # its reader will say so
    return None
  if len(found) == 1:
    return found[0]
  digest = hashlib.sha256(' '.join(f.digest for f in found if f).encode())
  return identity.Identity(path=path, digest=digest.hexdigest()[:16])
