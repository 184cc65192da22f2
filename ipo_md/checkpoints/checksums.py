"""A checksum of every file of a checkpoint, so that damage is seen.

  MODEL_DIR/checkpoints/N/checksums.json   {"default/manifest.ocdbt": "9f86..."}

Written before the checkpoint is committed, verified before it is read.
"""

from collections.abc import Iterator
import concurrent.futures
import hashlib
import json

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from ipo_md.core import progress

FILE = 'checksums.json'
COMMITTED = 'commit_success.txt'  # Orbax writes it last of all
_METADATA = '_CHECKPOINT_METADATA'
_BLOCK_BYTES = 2**24
_THREADS = 8


def seal(checkpoints: epath.Path) -> None:
  """Writes the checksums of the checkpoint that is about to be committed.

  It is the latest one that is not committed. An earlier one is half deleted,
  and checksums of what is left of it would make it a whole one.
  """
  unfinished = {
    int(directory.name.partition('.')[0]): directory
    for directory in checkpoints.iterdir()
    if directory.name[0].isdigit() and not (directory / COMMITTED).exists()
  }
  write(unfinished[max(unfinished)])


def write(directory: epath.Path) -> None:
  """Writes the checksums of a checkpoint, of all the files that it has."""
  names = sorted(_files(directory))
  found = dict(zip(names, _digests(directory, names), strict=True))
  (directory / FILE).write_text(json.dumps(found, indent=1) + '\n')


def damaged_files(directory: epath.Path) -> list[str]:
  """Files that are missing or not what was written, named relative to it.

  Each process reads its share of the files; all get the same answer, so all
  have to ask.
  """
  try:
    known = json.loads((directory / FILE).read_text())
    names = sorted(known)
  except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
    known, names = {}, []
  if _METADATA not in known:
    names = []
  bad = np.zeros(1 + len(names), bool)
  bad[0] = not names
  mine = range(jax.process_index(), len(names), jax.process_count())
  digests = _digests(directory, [names[i] for i in mine])
  for i, digest in zip(mine, digests, strict=True):
    bad[1 + i] = digest != known[names[i]]
  if jax.process_count() > 1:
    bad = multihost_utils.process_allgather(bad).any(axis=0)
  return [n for n, b in zip([FILE, *names], bad, strict=True) if b]


def set_damaged_aside(model_dir: str) -> None:
  """Moves damaged checkpoints to MODEL_DIR/damaged, and says so.

  From the latest one down to the first that is whole, from which the run then
  goes on. The steps in between are made again.

  Raises:
    ValueError: none is whole.
  """
  folder = epath.Path(model_dir) / 'checkpoints'
  steps = numbered(folder)
  damaged = {}
  while steps and (files := damaged_files(folder / str(steps[-1]))):
    damaged[steps.pop()] = files
  if not damaged:
    return
  what = '; '.join(
    f'the checkpoint of step {step:,} is damaged ({", ".join(files[:3])}'
    + (f' and {len(files) - 3} more)' if len(files) > 3 else ')')
    for step, files in damaged.items()
  )
  if not steps:
    raise ValueError(
      f'In {folder} (MODEL_DIR) {what}, and there is no earlier one. To start '
      'again from step 0 take that folder away.'
    )
  progress.say(
    f'In {folder} {what}: moved to {folder.parent / "damaged"}. Going on from '
    f'step {steps[-1]:,}.'
  )
  if jax.process_index() == 0:
    for step in damaged:
      _move(folder / str(step), folder.parent / 'damaged')
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('damaged checkpoints moved')


def numbered(folder: epath.Path) -> list[int]:
  """Steps of the committed checkpoints in MODEL_DIR/checkpoints, ascending."""
  if not folder.exists():
    return []
  return sorted(int(d.name) for d in folder.iterdir() if d.name.isdigit())


def _move(directory: epath.Path, folder: epath.Path) -> None:
  folder.mkdir(exist_ok=True)
  taken = {d.name for d in folder.iterdir()}
  names = (f'{directory.name}.{n}' for n in range(len(taken) + 1))
  directory.rename(folder / next(n for n in names if n not in taken))


def _files(directory: epath.Path, prefix: str = '') -> Iterator[str]:
  """Files of a checkpoint but those that are written after the checksums."""
  for path in directory.iterdir():
    if path.is_dir():
      yield from _files(path, f'{prefix}{path.name}/')
    elif prefix or path.name not in (FILE, COMMITTED):
      yield prefix + path.name


def _digests(directory: epath.Path, names: list[str]) -> list[str]:
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
    return list(threads.map(lambda name: _digest(directory / name), names))


def _digest(path: epath.Path) -> str:
  """SHA-256 of a file; '' if it is not there."""
  digest = hashlib.sha256()
  try:
    if path.name == _METADATA:
      # Orbax adds the time of the commit to it, after the checksums.
      content = json.loads(path.read_text())
      content.pop('commit_timestamp_nsecs', None)
      digest.update(json.dumps(content, sort_keys=True).encode())
    else:
      with path.open('rb') as file:
        while block := file.read(_BLOCK_BYTES):
          digest.update(block)
  except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
    return ''
  return digest.hexdigest()
