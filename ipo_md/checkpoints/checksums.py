"""Checksums of all files of a checkpoint, which reveal damage.

  MODEL_DIR/checkpoints/N/checksums.json   {"default/manifest.ocdbt": "9f86..."}

They are written before the checkpoint is committed and verified before it is
read.
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
COMMITTED = 'commit_success.txt'  # Orbax writes it last
_METADATA = '_CHECKPOINT_METADATA'
_BLOCK_BYTES = 2**24
_THREADS = 8


def seal(checkpoints: epath.Path) -> None:
  """Writes the checksums of the checkpoint that is about to be committed.

  That is the latest uncommitted one. An earlier one is half deleted, and
  checksums of what is left would declare it whole.

  Args:
    checkpoints: MODEL_DIR/checkpoints.
  """
  unfinished = {
    int(directory.name.partition('.')[0]): directory
    for directory in checkpoints.iterdir()
    if directory.name[0].isdigit() and not (directory / COMMITTED).exists()
  }
  write(unfinished[max(unfinished)])


def write(directory: epath.Path) -> None:
  """Writes the checksums of all files that a checkpoint has now."""
  names = sorted(_files(directory))
  found = dict(zip(names, _digests(directory, names), strict=True))
  (directory / FILE).write_text(json.dumps(found, indent=1) + '\n')


def damaged_files(directory: epath.Path) -> list[str]:
  """Returns the files of a checkpoint that are missing or have changed.

  Every process has to call this function: each reads a share of the files, and
  all of them get the same answer.

  Args:
    directory: Directory of the checkpoint.

  Returns:
    Paths relative to the directory, empty for a whole checkpoint.
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
  """Moves damaged checkpoints to MODEL_DIR/damaged and reports them.

  Checkpoints are verified from the latest one back to the first whole one. The
  run continues from there and repeats the steps in between.

  Raises:
    ValueError: No checkpoint is whole.
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
      f'In {folder} (MODEL_DIR) {what}, and there is no earlier one. Remove '
      'that directory to start again from step 0.'
    )
  progress.say(
    f'In {folder} {what}: moved to {folder.parent / "damaged"}. Continuing '
    f'from step {steps[-1]:,}.'
  )
  if jax.process_index() == 0:
    for step in damaged:
      _move(folder / str(step), folder.parent / 'damaged')
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('damaged checkpoints moved')


def numbered(folder: epath.Path) -> list[int]:
  """Returns the steps of the checkpoints in a directory, in ascending order.

  Args:
    folder: MODEL_DIR/checkpoints, which need not exist.
  """
  if not folder.exists():
    return []
  return sorted(int(d.name) for d in folder.iterdir() if d.name.isdigit())


def _move(directory: epath.Path, folder: epath.Path) -> None:
  """Moves directory N to folder/N.0, or to N.1 and so on if that exists."""
  folder.mkdir(exist_ok=True)
  taken = {d.name for d in folder.iterdir()}
  names = (f'{directory.name}.{n}' for n in range(len(taken) + 1))
  directory.rename(folder / next(n for n in names if n not in taken))


def _files(directory: epath.Path, prefix: str = '') -> Iterator[str]:
  """Yields the files of a checkpoint that precede its checksums."""
  for path in directory.iterdir():
    if path.is_dir():
      yield from _files(path, f'{prefix}{path.name}/')
    elif prefix or path.name not in (FILE, COMMITTED):
      yield prefix + path.name


def _digests(directory: epath.Path, names: list[str]) -> list[str]:
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
    return list(threads.map(lambda name: _digest(directory / name), names))


def _digest(path: epath.Path) -> str:
  """Returns the SHA-256 of a file, '' if it is missing or not readable."""
  digest = hashlib.sha256()
  try:
    if path.name == _METADATA:
      # Orbax adds the time of the commit after the checksums are written.
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
