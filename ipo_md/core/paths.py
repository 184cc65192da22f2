"""The paths that a user gives: relative ones, ~, buckets, and empty ones."""

import os

BEST = ':best'  # MODEL_DIR:best, the checkpoint with the highest win rate


def absolute(path: str, name: str) -> str:
  """Returns a path made absolute, with ~ expanded; a bucket's stays as it is.

  Args:
    path: Path of a file or folder.
    name: Name of the setting that holds it, for the message.

  Raises:
    ValueError: The path is empty, not a text, or in the home of a user who does
      not exist.
  """
  if not isinstance(path, str | os.PathLike):
    raise ValueError(f'{name} = {path!r} has to be a path, in quotes.')
  path = os.fspath(path)
  if not path.strip():
    raise ValueError(f'{name} is empty: it has to be a path.')
  if '://' in path:
    return path
  expanded = os.path.expanduser(path)
  if expanded.startswith('~'):
    raise ValueError(
      f'{name} {path}: there is no user {path[1:].split("/")[0]}.'
    )
  return os.path.abspath(expanded)
