"""The base class of TFDS builders that read JSON lines."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import hashlib
import os
from typing import Any

from absl import logging
import tensorflow_datasets as tfds

from tasks.lib import json_lines


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A builder that reads files from a manual directory or downloads them.

  Args:
    manual_dir: A directory that must hold all files. None reads them from
      TFDS's manual directory, or downloads them.
    max_bad_rows: MAX_BAD_ROWS, the number of bad rows of a split that are left
      out and listed before reading fails.
    checksums: The SHA-256 of every file, by name. None skips the check.
    **kwargs: Arguments of the base class.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    'If there is no network, put the original files here.'
  )

  def __init__(
    self,
    *,
    manual_dir: str | None = None,
    max_bad_rows: int = 0,
    checksums: Mapping[str, str] | None = None,
    **kwargs: Any,
  ):
    super().__init__(**kwargs)
    self._manual_dir = manual_dir
    self._max_bad_rows = max_bad_rows
    self._sha256 = dict(checksums or {})

  def find(
    self, dl_manager: tfds.download.DownloadManager, urls: Mapping[str, str]
  ) -> dict[str, str]:
    """Returns the paths of files, downloaded if necessary.

    Args:
      dl_manager: TFDS's download manager.
      urls: The address of each file, by key.

    Returns:
      The path of each file, by key.

    Raises:
      ValueError: Only some of the files are in the manual directory, none is
        and the download fails, or a checksum differs.
    """
    try:
      folder = self._manual_dir or str(dl_manager.manual_dir)
    except AssertionError:  # TFDS reports an absent directory so
      folder = ''
    names = {key: url.rsplit('/', 1)[-1] for key, url in urls.items()}
    by_hand = {
      key: os.path.join(folder, name)
      for key, name in names.items()
      if os.path.exists(os.path.join(folder, name))
    }
    if len(by_hand) < len(urls) and (by_hand or self._manual_dir):
      missing = sorted(names[key] for key in set(urls) - set(by_hand))
      raise ValueError(f'{folder} lacks {", ".join(missing)}.')
    try:
      paths = by_hand or dl_manager.download(dict(urls))
    except OSError as error:
      raise ValueError(
        f'{", ".join(names.values())} cannot be downloaded ({error}). Put '
        'them into a directory and name it with --manual_dir.'
      ) from None
    paths = {key: str(path) for key, path in paths.items()}
    for key, path in paths.items():
      self._check(path, names[key])
    return paths

  def read(
    self, paths: Iterable[str], parse: Callable[[dict[str, Any]], Any]
  ) -> Iterator[tuple[str, Any]]:
    """Yields the key and the parsed value of each row.

    Raises:
      ValueError: There are too many bad rows, or no row at all.
    """
    paths = list(paths)
    empty = True
    for row in json_lines.read(paths, parse, max_bad_rows=self._max_bad_rows):
      yield row
      empty = False
    if empty:
      raise ValueError(f'No row of this split in {", ".join(paths)}.')

  def _check(self, path: str, name: str) -> None:
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    logging.info('%s  %s', digest, name)
    if not self._sha256:
      return
    expected = self._sha256.get(name)
    if expected is None:
      raise ValueError(f'The checksums have no line for {name}.')
    if digest != expected:
      raise ValueError(
        f'{path} has the SHA-256 {digest}, not {expected} as the checksums say.'
      )


def text(value: Any) -> Any:
  """Decodes the bytes in a row that TFDS returns, at any depth."""
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, Mapping):
    return {k: text(v) for k, v in value.items()}
  if getattr(value, 'dtype', None) == 'O':
    return [text(v) for v in value.tolist()]
  return value
