"""One run owns a folder: two that write to it would mix their results.

  FOLDER/OWNER.json   run, host, pid, start of the process, number of the beat

The owner counts `beat` up while it lives, and removes the file at its end. A
dead owner leaves it behind. Whether an owner lives is never read off a clock:
on its own host its process is looked up, by pid and start time; elsewhere a
beat that stays the same while it is watched means that the owner is dead. A run
that finds another owner in its place ends at once.

A file is all that this takes, so it works on shared disks and in buckets.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
from typing import Any
import uuid

from etils import epath

FILE = 'OWNER.json'
BEAT_SECONDS = 10  # between two beats of an owner
WATCH_SECONDS = 60  # without a beat, after which an owner elsewhere is dead
_SETTLE_SECONDS = 3  # in a bucket, for two runs that write at the same time

Record = dict[str, Any]


@contextlib.contextmanager
def owned(folder: str, setting: str = 'MODEL_DIR') -> Iterator[None]:
  """Owns a folder for as long as the block runs.

    with ownership.owned('/runs/ipo'):
      ...

  Args:
    folder: Absolute path of a folder that exists, on a disk or in a bucket.
    setting: Name of the setting that holds it, for messages.

  Raises:
    ValueError: A run that lives owns it, or the folder cannot be written.
  """
  record = _ours(setting)
  _acquire(epath.Path(folder), record)
  stop = threading.Event()
  beats = threading.Thread(
    target=_beat, args=(epath.Path(folder), record, stop), daemon=True
  )
  beats.start()
  try:
    yield
  finally:
    stop.set()
    beats.join()
    path = epath.Path(folder) / FILE
    with contextlib.suppress(*_errors()):
      if _run_of(_read(path)) == record['run']:
        path.unlink()


def check(folder: str) -> None:
  """Raises a ValueError if a run that is known to live owns a folder.

  Unlike `owned` it neither waits nor writes.

  Args:
    folder: Absolute path of a folder, which need not exist.
  """
  record = _read(epath.Path(folder) / FILE)
  if record is not None and _lives(record):
    raise ValueError(_taken(folder, record))


def _ours(setting: str = 'MODEL_DIR') -> Record:
  return {
    'setting': setting,
    'run': uuid.uuid4().hex,
    'host': socket.gethostname(),
    'system': _system(),
    'pid': os.getpid(),
    'start': _start_of(os.getpid()),
    'beat': 0,
  }


def _system() -> str:
  """Identifies what a pid is unique in: a boot, and a container's namespace."""
  parts = []
  with contextlib.suppress(OSError):
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id')
    parts = [boot.read_text().strip(), os.readlink('/proc/self/ns/pid')]
  return ' '.join(parts)


def _start_of(pid: int) -> str | None:
  """Returns when a process started, in ticks since the boot, or None.

  A process that has ended, but whose parent has not asked for its exit code,
  has not got a start.
  """
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return None
  state, *fields = text.rpartition(')')[2].split()
  return None if state in 'ZX' else fields[18]


def _lives(record: Record) -> bool | None:
  """Returns whether an owner lives, or None if that cannot be known here."""
  system = _system()
  if not system or (record.get('host'), record.get('system')) != (
    socket.gethostname(),
    system,
  ):
    return None
  return _start_of(record['pid']) == record['start']


def _acquire(folder: epath.Path, record: Record) -> None:
  path = folder / FILE
  try:
    while True:
      watched = _read(path)
      if watched is not None and _lives(watched) is None:
        _watch(folder, watched)
      with _locked(folder) as alone:
        # Another run may have been faster since.
        current = _read(path)
        if current is not None and current != watched and not _dead(current):
          continue
        if current is not None and _lives(current):
          raise ValueError(_taken(str(folder), current))
        _write(path, record)
      if not alone:
        time.sleep(_SETTLE_SECONDS)  # the last of several writers owns it
        current = _read(path)
        if current is not None and _run_of(current) != record['run']:
          raise ValueError(_taken(str(folder), current))
      return
  except _errors() as error:
    raise ValueError(
      f'{_setting(record)} {folder} cannot be written: {error}.'
    ) from error


def _dead(record: Record) -> bool:
  return _lives(record) is False


def _watch(folder: epath.Path, record: Record) -> None:
  """Waits until an owner elsewhere is known to be dead, or raises."""
  print(
    f'{_setting(record)} {folder} belongs to {_name(record)}. Watching for '
    f'{WATCH_SECONDS} s whether that run lives.',
    flush=True,
  )
  end = time.monotonic() + WATCH_SECONDS
  while time.monotonic() < end:
    time.sleep(min(1, WATCH_SECONDS / 10))
    current = _read(folder / FILE)
    if current is None:  # it has ended
      return
    if current != record:
      raise ValueError(_taken(str(folder), current))


def _beat(folder: epath.Path, record: Record, stop: threading.Event) -> None:
  path = folder / FILE
  while not stop.wait(BEAT_SECONDS):
    with contextlib.suppress(*_errors()):  # a full disk, a bucket out of reach
      current = _read(path)
      if current is not None and _run_of(current) != record['run']:
        _displaced(folder, current)
      record['beat'] += 1
      if folder.exists():
        _write(path, record)


def _displaced(folder: epath.Path, record: Record) -> None:
  """Ends this process, which must not write any more."""
  print(
    f'ipo_md: {_taken(str(folder), record)} It took the folder over while this '
    'run was suspended or could not write there; this run ends.',
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[bool]:
  """Excludes other runs from a folder for a moment.

  Yields whether it could: buckets and some shared disks have no locks.
  """
  if '://' in str(folder):
    yield False
    return
  handle = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX)
      alone = True
    except OSError:
      alone = False
    yield alone
  finally:
    os.close(handle)


def _errors() -> tuple[type[Exception], ...]:
  """Returns the errors of file systems; TensorFlow's, for buckets, differ."""
  tensorflow = sys.modules.get('tensorflow')
  return (OSError, tensorflow.errors.OpError) if tensorflow else (OSError,)


def _read(path: epath.Path) -> Record | None:
  """Returns the record of an owner; None if there is none that can be read."""
  try:
    record = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  return record if isinstance(record, dict) and 'pid' in record else None


def _run_of(record: Record | None) -> str | None:
  return record.get('run') if record else None


def _write(path: epath.Path, record: Record) -> None:
  partial = path.parent / f'{FILE}.{record["run"]}'
  partial.write_text(json.dumps(record) + '\n')
  partial.replace(path)


def _setting(record: Record) -> str:
  return record.get('setting', 'MODEL_DIR')


def _name(record: Record) -> str:
  return f'process {record["pid"]} on {record["host"]}'


def _taken(folder: str, record: Record) -> str:
  return (
    f'{_setting(record)} {folder} belongs to a run that lives, '
    f'{_name(record)}. Stop it or wait for its end, or choose another '
    f'{_setting(record)}.'
  )
